"""What is refused before a training begins: values of settings, machines that are not there, folders, other runs."""

import pytest
import torch

from separable.errors import InputError
from separable.recipes import audio, beginning, command_line, image, text, tokens

WRONG = [
    (text, "--epochs 0", "must be at least 1"),
    (text, "--learning-rate -1", "must be above 0"),
    (text, "--learning-rate nan", "must be above 0"),
    (text, "--learning-rate inf", "must be above 0"),
    (text, "--patience -1", "must be at least 0"),
    (text, "--average 1.5", "must be at least 0 and below 1"),
    (text, "--clip -1", "must be at least 0"),
    (text, "--devices 0", "must be at least 1"),
    (text, "--nodes 0", "must be at least 1"),
    (text, "--checkpoint-every 0", "must be at least 1"),
    (text, "--seed -1", "must be at least 0 and below 2"),
    (text, "--precision nonsense", "must be one of 32-true, bf16-mixed, 16-mixed"),
    (text, "--accelerator abacus", "must be one of auto, cpu, gpu, cuda"),
    (text, "--batch 0", "must be at least 1"),
    (text, "--word-dropout 2", "must be at least 0 and below 1"),
    (text, "--dilations 1,0", "must hold numbers of at least 1"),
    (text, "--width 0", "must be at least 1"),
    (tokens, "--batch-words 0", "must be at least 1"),
    (tokens, "--output-dropout 1", "must be at least 0 and below 1"),
    (tokens, "--alone 1.5", "must be at least 0 and at most 1"),
    (audio, "--rate 0", "must be at least 1"),
    (audio, "--seconds 0", "must be above 0"),
    (audio, "--teaching nan", "must be at least 0 and at most 1"),
    (image, "--widths 0,8", "must hold numbers of at least 1"),
    (image, "--channels 2", "must be one of 0, 1, 3"),
    (image, "--valid-share 1", "must be at least 0 and below 1"),
    (image, "--dropout 2", "must be at least 0 and below 1"),
]


@pytest.mark.parametrize(("recipe", "words", "rule"), WRONG, ids=[f"{r.__name__[18:]} {w}" for r, w, _ in WRONG])
def test_a_value_that_breaks_its_rule_is_refused_with_the_settings_name(recipe, words, rule, tmp_path):
    name, value = words.split()
    wanted = command_line.parse(recipe.Settings, [name, value, "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match=rule) as refused:
        recipe.main(wanted)
    assert refused.value.argument == name[2:].replace("-", "_")
    assert not (tmp_path / "out").exists()


def test_what_every_recipe_sets_by_itself_passes(tmp_path):
    for recipe in (audio, image, text, tokens):
        beginning.check(recipe.Settings(out=tmp_path / "new" / "folder"))
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("name", "value", "rule"), [("accelerator", "gpu", "there is none"), ("precision", "16-mixed", "GPU")]
)
def test_a_gpu_that_is_not_there_is_refused(name, value, rule, tmp_path):
    with pytest.raises(InputError, match=f"^{name} = {value}.*{rule}"):
        text.main(text.Settings(out=tmp_path / "out", **{name: value}))


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_read(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for out in (file, file / "below"):
        with pytest.raises(InputError, match=f"^out = {out}: (must be a folder|cannot be written to)"):
            text.main(text.Settings(out=out, train=tmp_path / "missing.csv"))
    assert file.read_text() == "kept"


@pytest.fixture
def begun(tmp_path):
    """Settings of a run that has a checkpoint."""
    kept = {"out": tmp_path / "out", "train": tmp_path / "a.csv", "width": 32, "epochs": 3}
    settings = text.Settings(**kept)
    beginning.keep(settings)
    (tmp_path / "out" / "checkpoints" / "last.ckpt").touch()
    return kept | {"resume": True}


def test_a_run_goes_on_with_its_own_settings_wherever_its_data_lie_now(begun, tmp_path):
    beginning.check(text.Settings(**begun))
    moved = begun | {"train": tmp_path / "elsewhere" / "a.csv", "checkpoint_every": 7, "patience": 2, "rival": True}
    beginning.check(text.Settings(**moved))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"width": 48}, "width = 48: the run in .* has 32;"),
        ({"epochs": 4}, "epochs = 4: the run in .* has 3;"),
        ({"seed": 2}, "seed = 2: the run in .* has 1;"),
        ({"dilations": (1, 2, 4)}, "dilations = 1,2,4: the run in .* has 1,2;"),
        ({"train": "b.csv"}, "train = b.csv: the run in .* has a.csv;"),
    ],
)
def test_a_run_does_not_go_on_with_another_network_data_or_schedule(begun, changed, told):
    with pytest.raises(InputError, match=f"^{told}"):
        text.main(text.Settings(**begun | changed))


def test_a_run_that_was_killed_before_its_first_checkpoint_may_begin_with_other_settings(begun, tmp_path):
    (tmp_path / "out" / "checkpoints" / "last.ckpt").unlink()
    beginning.check(text.Settings(**begun | {"width": 48}))
