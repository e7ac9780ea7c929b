"""What the recipes share in training: processes, folders, losses, the learning rate, clipping, stopping; and help."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from separable import conversion, store
from separable.errors import InputError
from separable.recipes import audio, command_line, image, learning, running, text, tokens
from separable.recipes.running import Running


@pytest.fixture
def said(tmp_path):
    rows = [f"{word} {verb}@{label}" for word in ("oil", "milk", "rent") * 20 for verb, label in RISES]
    (tmp_path / "said.txt").write_text("\n".join(rows))
    return tmp_path / "said.txt"


RISES = (("rises", "up"), ("falls", "down"), ("climbs", "up"), ("drops", "down"))


@pytest.fixture
def shades(tmp_path):
    from PIL import Image

    draw = np.random.default_rng(0)
    for label, grey in (("dark", 60), ("light", 190)):
        (tmp_path / "shades" / label).mkdir(parents=True)
        for i in range(24):
            pixels = (draw.integers(-50, 50, (12, 12)) + grey).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "shades" / label / f"{i}.png")
    return tmp_path / "shades"


def settings(recipe, out, *options):
    given = [*map(str, options), "--out", str(out), "--epochs", "1", "--accelerator", "cpu"]
    return command_line.parse(recipe.Settings, given)


def test_the_steepest_fall_is_found_for_the_same_factor_and_not_for_the_same_step():
    rates = [10 ** (-5 + 5 * i / 99) for i in range(100)]
    losses = [1 / (1 + math.exp(4 * (math.log10(rate) + 2))) for rate in rates]  # steepest at 1e-2
    assert learning.steepest(rates, losses) == pytest.approx(1e-2, rel=0.15)
    for flat in ([1.0] * 100, [float(i) for i in range(100)]):
        with pytest.raises(InputError, match="no rate at which the loss falls"):
            learning.steepest(rates, flat)
    with pytest.raises(InputError, match="no rate at which the loss falls"):
        learning.steepest(rates[:2], losses[:2])


def test_a_learning_rate_is_searched_told_drawn_and_taken_up_again(tmp_path, said):
    options = ("--train", said, "--width", "16", "--learning-rate", "0.004", "--find-lr", "yes", "--batch", "16")
    wanted = settings(text, tmp_path / "out", *options)
    results = text.main(wanted)
    found = results["learning_rate_search"]
    assert found["given"] == 0.004
    assert 1e-5 < found["chosen"] < 1
    assert float(results["settings"]["learning_rate"]) == pytest.approx(found["chosen"])
    bag = text.Settings.bag_learning_rate * found["chosen"] / 0.004
    assert float(results["settings"]["bag_learning_rate"]) == pytest.approx(bag)
    assert "Search of the learning rate" in (tmp_path / "out" / "report.html").read_text()
    assert not list((tmp_path / "out").glob(".lr_find*"))
    # a run that goes on takes what was found, whatever stands there
    kept = tmp_path / "out" / "learning_rate.json"
    kept.write_text(json.dumps(found | {"chosen": 0.123}))
    again = settings(text, tmp_path / "out", *options, "--resume", "yes")
    text.main(again)
    assert again.learning_rate == pytest.approx(0.123)


def test_the_search_leaves_the_network_as_it_was(tmp_path, shades):
    wanted = settings(image, tmp_path / "out", "--train", shades, "--widths", "8", "--depths", "1", "--batch-size", "8")
    part = image.Pixels(image.open_set(str(shades), "train", image.sized(0, None)))
    network = image.our_network(wanted, 2, part.shape)
    module = image.ImageTraining(network, wanted, part, part, image.measured(part))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learning.find(module, wanted)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert module.history == []


def test_the_search_is_refused_in_several_processes(tmp_path):
    with pytest.raises(InputError, match="find_lr = yes: is a search in one process"):
        learning.find(None, Running(out=tmp_path, devices=2))


@pytest.fixture
def small(tmp_path, said, shades):
    """Every recipe with options for a training of seconds."""
    import soundfile

    draw = np.random.default_rng(0)
    (tmp_path / "sounds").mkdir()
    for label, hertz in (("low", 300), ("high", 1500)):
        for take in range(6):
            samples = 0.3 * np.sin(2 * np.pi * hertz * np.arange(4000) / 8000) + 0.01 * draw.standard_normal(4000)
            soundfile.write(tmp_path / "sounds" / f"{label}_{take}.wav", samples, 8000)
    (tmp_path / "tags").write_text("Ada B-PER\nmet O\nUlm B-LOC\n\nBo B-PER\nmet O\nUlm B-LOC\n\n-DOCSTART- O\n\n" * 20)
    heard = ("--data", tmp_path / "sounds", "--names", "(?P<label>[a-z]+)_(?P<take>[0-9]+)", "--valid", "take=0-1")
    tagged = ("--train", tmp_path / "tags", "--valid", tmp_path / "tags")
    return {
        text: ("--train", said, "--width", "16"),
        tokens: (*tagged, "--width", "16", "--context", "document", "--batch-words", "40"),
        audio: (*heard, "--network", "causal", "--batch", "4"),
        image: ("--train", shades, "--widths", "8", "--depths", "1", "--batch-size", "8"),
    }


def test_as_many_processes_must_run_as_are_asked_for(tmp_path, said, monkeypatch):
    wanted = settings(text, tmp_path / "out", "--train", said, "--devices", "2")
    with pytest.raises(InputError, match=r"devices = 2: must, times nodes, be the number of processes that run \(1\)"):
        text.main(wanted)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"be the number of processes that run \(4\); torchrun"):
        text.main(wanted)


def test_a_finished_run_however_short_is_not_begun_over(tmp_path, said):
    wanted = settings(text, tmp_path / "out", "--train", said, "--width", "16")
    text.main(wanted)
    assert (tmp_path / "out" / "checkpoints" / "last.ckpt").exists()  # of its only epoch: it made fewer than 100 steps
    for kept in ("checkpoints/best.ckpt", "results.json"):
        with pytest.raises(InputError, match="holds checkpoints or results of an earlier run"):
            running.check(wanted)
        (tmp_path / "out" / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
        (tmp_path / "out" / kept).unlink()
    running.check(wanted)


def test_a_run_stops_where_validation_grows_no_better(tmp_path, said):
    still = ("--learning-rate", "1e-9", "--bag-learning-rate", "1e-9", "--patience", "2")
    wanted = settings(text, tmp_path / "out", "--train", said, "--valid", said, "--width", "16", *still)
    wanted.epochs = 20
    found = text.main(wanted)
    assert len(found["history"]) == 3  # the first, and two that were no better


def test_losses_and_minutes_of_a_run_that_goes_on_are_of_the_whole_run(tmp_path):
    first, second = running.Training(), running.Training()
    first.settings = second.settings = Running(out=tmp_path)
    first.on_fit_start()
    first.began = first.began[0] - 60, first.began[1] - 30  # a minute ago, half of it on the processor
    first.noted(torch.tensor(3.0)), first.noted(torch.tensor(1.0))
    kept = {}
    first.on_save_checkpoint(kept)
    torch.save(kept, tmp_path / "kept")
    second.on_load_checkpoint(torch.load(tmp_path / "kept", weights_only=True))
    second.on_fit_start()
    second.noted(torch.tensor(5.0))
    second.end_epoch(valid=0.5)
    assert second.history == [{"epoch": 1, "loss": 3.0, "valid": 0.5}]
    assert second.losses == []
    assert [60 <= wall < 65 and 30 <= processor < 35 for wall, processor in [second.spent_s()]] == [True]


def test_a_setting_that_is_yes_or_no_may_stand_alone(tmp_path):
    given = ["--out", str(tmp_path), "--strict", "--find-lr", "--resume", "no", "--vary", "no"]
    wanted = command_line.parse(audio.Settings, given)
    assert (wanted.strict, wanted.find_lr, wanted.resume, wanted.vary) == (True, True, False, False)
    with pytest.raises(InputError, match="strict = maybe: must be yes or no"):
        command_line.parse(audio.Settings, [*given, "--strict", "maybe"])


def test_mixed_precision_is_clipped_in_every_recipe(tmp_path, small, monkeypatch):
    norms, clip = [], running.Training.configure_gradient_clipping

    def watched(module, optimizer, **given):
        before = norm(module)
        clip(module, optimizer, **given)
        norms.append((before, norm(module)))

    monkeypatch.setattr(running.Training, "configure_gradient_clipping", watched)
    for recipe, options in small.items():
        out = tmp_path / recipe.__name__
        results = recipe.main(settings(recipe, out, *options, "--precision", "bf16-mixed", "--clip", "0.01"))
        assert math.isfinite(results["history"][0]["loss"])
        assert max(before for before, _ in norms) > 0.02, recipe.__name__
        assert all(after <= 0.01001 for _, after in norms), recipe.__name__
        norms.clear()
        assert (out / "network").is_dir()


def norm(module):
    return float(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))


@pytest.mark.parametrize("recipe", [audio, image, text, tokens])
def test_a_training_that_falls_apart_stops_and_leaves_no_network(recipe, tmp_path, small):
    wanted = settings(recipe, tmp_path / "out", *small[recipe], "--learning-rate", "1e30", "--checkpoint-every", "3")
    with pytest.raises(InputError, match=r"^learning_rate = 1e\+30: (the loss|weights) became (nan|inf|infinite)"):
        recipe.main(wanted)
    assert not (tmp_path / "out" / "network").exists()
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_checkpoint_of_good_weights_is_not_written_over_by_one_of_nan(tmp_path, said):
    options = ("--train", said, "--width", "16", "--batch", "4", "--checkpoint-every", "5")
    wanted = settings(text, tmp_path / "out", *options)
    falling_apart = text.ClassifierTraining.noted

    def noted(module, loss):
        return falling_apart(module, loss * (math.nan if module.global_step == 12 else 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text.ClassifierTraining, "noted", noted)
        with pytest.raises(InputError, match=r"^learning_rate = 0\.004: the loss became nan at step 13;"):
            text.main(wanted)
    kept = torch.load(tmp_path / "out" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 10
    assert all(value.isfinite().all() for value in kept["state_dict"].values() if value.is_floating_point())


def test_a_converted_network_is_taken_further_with_its_classes_or_with_others(tmp_path, shades):
    dense = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip
    drawn = torch.Generator().manual_seed(0)
    made = conversion.convert(dense, torch.rand(32, 1, 12, 12, generator=drawn), {"macs": 0.6})
    about = {"preparation": {"mean": [0.5], "std": [0.25], "channels": 1}, "classes": ["a", "b", "c"]}
    store.save(made.model, tmp_path / "converted", example=torch.zeros(1, 1, 12, 12), about=about)
    wanted = settings(image, tmp_path / "out", "--train", shades, "--init", tmp_path / "converted", "--batch-size", "8")
    results = image.main(wanted)
    network = store.load(tmp_path / "out" / "network")
    assert results["saved"] == "network"
    assert network(torch.zeros(2, 1, 12, 12)).shape == (2, 2)
    assert store.read_about(tmp_path / "out" / "network")["preparation"]["mean"] == [0.5]
    shapes = [[p.shape for name, p in each.named_parameters() if "6" not in name] for each in (network, made.model)]
    assert shapes[0] == shapes[1], "all but the last layer as converted"
    assert results["params"] < sum(p.numel() for p in dense.parameters())


@pytest.mark.parametrize("recipe", [audio, text, tokens])
def test_a_network_for_images_cannot_begin_another_recipe(recipe, tmp_path, said):
    store.save(nn.Linear(2, 2), tmp_path / "net", example=torch.zeros(1, 2))
    rule = {audio: "was not trained on sound", text: "no saved network for text", tokens: "no saved network for tokens"}
    wanted = settings(recipe, tmp_path / "out", "--init", tmp_path / "net")
    with pytest.raises(InputError, match=rule[recipe]):
        begun(recipe, wanted, said)


def test_a_network_that_hears_cannot_begin_the_one_for_images(tmp_path):
    about = {"task": "audio", "preparation": {"rate": 8000}}
    store.save(nn.Linear(2, 2), tmp_path / "net", example=torch.zeros(1, 2), about=about)
    with pytest.raises(InputError, match="holds a network for audio, not for images"):
        image.open_network("compact", None, tmp_path / "net")


def begun(recipe, wanted, said):
    if recipe is audio:
        return audio.go_on(wanted, 8000, ["no", "yes"])
    if recipe is text:
        return text.begin(text.read(said, wanted), wanted)
    return tokens.begin(tokens.conll.Corpus([tokens.conll.Sentence(["Ada"], ["S-PER"])]), wanted)


@pytest.mark.parametrize("recipe", [audio, image, text, tokens])
def test_help_says_what_every_setting_means(recipe, capsys):
    with pytest.raises(SystemExit):
        command_line.parse(recipe.Settings, ["--help"], "separable train x")
    shown = capsys.readouterr().out
    told = command_line.meanings(Running)
    for name in ("out", "find_lr", "precision", "patience"):
        assert told[name]
        assert told[name].split(";")[0][:40] in " ".join(shown.split())
    assert "yes|no" in shown
    assert shown.index("of this recipe:") < shown.index("of every recipe:")


def test_a_setting_without_its_meaning_is_none_of_ours():
    for recipe in (audio, image, text, tokens):
        told = command_line.meanings(Running)
        own = command_line.meanings(recipe.Settings)
        missing = [name for name, words in own.items() if not words and not told.get(name)]
        assert not missing, f"{recipe.__name__}: {missing}"
