"""`separable evaluate` and `separable predict` on folders that the recipes write, for each of the four tasks."""

import csv
import io
import json
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from separable import cli, store
from separable.errors import InputError
from separable.recipes import audio, command_line, image, text, tokens

WORDS = "(?P<label>[a-z]+)_(?P<take>[0-9]+)"
QUICK = ("--epochs", "1", "--accelerator", "cpu")


def call(monkeypatch, capsys, *arguments):
    """The command as `separable` starts it: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["separable", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, *capsys.readouterr()


def train(recipe, out, *arguments):
    settings = command_line.parse(recipe.Settings, [str(a) for a in (*arguments, "--out", out, *QUICK)])
    recipe.main(settings)
    return out


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """A classifier of sentences, and where its data lies."""
    folder, draw = tmp_path_factory.mktemp("said"), random.Random(0)
    for name, count in (("train", 120), ("test", 40)):
        rows = [
            (f"{draw.choice(['oil', 'milk', 'rent'])} {verb} in {draw.choice(['may', 'june'])}", label)
            for label, verb in draw.choices([("up", "rises"), ("down", "falls")], k=count)
        ]
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows, *[("a cat sleeps", "none")] * 5 * (name == "test")])
    given = ("--train", folder / "train.csv", "--valid", folder / "test.csv", "--unknown-label", "none")
    train(text, folder / "out", *given, "--width", "16")
    return folder


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A tagger, and where its data lies."""
    folder, draw = tmp_path_factory.mktemp("named"), random.Random(0)
    for name, count in (("train", 60), ("test", 20)):
        lines = []
        for number in range(count):
            lines += ["-DOCSTART- O\n"] if number % 4 == 0 else []
            lines += [
                f"{draw.choice(['Ada', 'Bo', 'Cy'])} B-PER",
                "met O",
                f"{draw.choice(['Rom', 'Ulm'])} B-LOC",
                ". O",
                "",
            ]
        (folder / f"{name}.conll").write_text("\n".join(lines))
    given = ("--train", folder / "train.conll", "--valid", folder / "test.conll", "--context", "document")
    train(tokens, folder / "out", *given, "--width", "16", "--learning-rate", "0.02", "--batch-words", "40")
    return folder


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """A causal network that hears, and where its data lies."""
    import soundfile

    folder, draw = tmp_path_factory.mktemp("heard"), np.random.default_rng(0)
    (folder / "sounds").mkdir()
    for label, hertz in (("low", 300), ("high", 1500)):
        for take in range(10):
            samples = 0.3 * np.sin(2 * np.pi * hertz * np.arange(4000) / 8000) + 0.01 * draw.standard_normal(4000)
            soundfile.write(folder / "sounds" / f"{label}_{take}.wav", samples, 8000)
    soundfile.write(folder / "long.wav", 0.3 * np.sin(np.arange(30_000)), 8000)
    soundfile.write(folder / "fast.wav", 0.3 * np.sin(np.arange(60_000) / 2), 16_000)
    given = ("--data", folder / "sounds", "--names", WORDS, "--valid", "take=0-2", "--network", "causal")
    train(audio, folder / "out", *given, "--batch", "4")
    return folder


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A network for images, and where its data lies; one image of the test set is damaged."""
    from PIL import Image

    folder, draw = tmp_path_factory.mktemp("seen"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 5)):
        for label, grey in (("dark", 60), ("light", 190)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = (draw.integers(-50, 50, (12, 12)) + grey).astype("uint8")
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
    (folder / "test" / "dark" / "9.png").write_bytes(b"no image")
    given = ("--train", folder / "train", "--test", folder / "test", "--widths", "8", "--depths", "1")
    train(image, folder / "out", *given, "--batch-size", "8", "--augment", "flip")
    return folder


EVALUATED = {
    "said": ("test.csv", "valid", ["--unknown-label", "none"]),
    "named": ("test.conll", "valid", []),
    "heard": ("sounds", "valid", ["--names", WORDS, "--part", "take=0-2"]),
    "seen": ("test", "test", []),
}


@pytest.mark.parametrize("kind", EVALUATED)
def test_evaluate_says_what_the_recipe_said_at_its_end(kind, request, monkeypatch, capsys, tmp_path):
    folder = request.getfixturevalue(kind)
    data, part, options = EVALUATED[kind]
    page = tmp_path / "page.html"
    given = ("evaluate", folder / "out", folder / data, *options, "--json", "--html", page)
    code, out, _ = call(monkeypatch, capsys, *given)
    assert code == 0
    now, then = json.loads(out), json.loads((folder / "out" / "results.json").read_text())[part]
    fast = {name for name in then if name.endswith("_per_s")}
    for name in then.keys() - fast:
        if name == "mistakes" and kind == "seen":  # here with their file
            now[name] = [{k: v for k, v in row.items() if k != "file"} for row in now[name]]
        assert now[name] == then[name], name
    assert all(now[name] > 0 for name in fast)
    assert now["network"] == "out"
    assert now["data"] == str(folder / data)
    assert page.stat().st_size > 5_000
    code, out, _ = call(monkeypatch, capsys, "evaluate", folder / "out" / "network", folder / data, *options)
    assert code == 0
    assert out.startswith(f"network on {folder / data}")


def test_images_are_named_in_order_and_a_damaged_one_costs_only_its_row(seen, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "predict", seen / "out", seen / "test", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert "INPUT = 1 of 11: cannot be used, the first: " in err
    assert [row["input"] for row in rows] == sorted(row["input"] for row in rows)
    wrong = [row for row in rows if "error" in row]
    assert [row["input"] for row in wrong] == [str(seen / "test" / "dark" / "9.png")]
    network = store.load(seen / "out" / "network")
    from separable.data import open_images

    about = store.read_about(seen / "out" / "network")
    one = open_images(seen / "test", about["preparation"])[0][0]
    chances = network(one[None]).softmax(1)[0]
    assert rows[0]["label"] == about["classes"][int(chances.argmax())]
    assert rows[0]["probability"] == pytest.approx(chances.max().item(), abs=1e-5)


def test_images_of_two_sizes_and_of_a_network_without_classes_are_told_by_number(monkeypatch, capsys, tmp_path):
    from PIL import Image

    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    store.save(network, tmp_path / "net", about={"preparation": {"mean": [0.0], "std": [1.0], "channels": 1}})
    for number, side in enumerate((8, 9, 9, 8)):
        Image.new("L", (side, side), 40 * number).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in (3, 1, 0, 2)]
    code, out, _ = call(monkeypatch, capsys, "predict", tmp_path / "net", *files)
    assert code == 0
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == [str(file) for file in files]
    assert {row[1] for row in rows} <= {"0", "1", "2"}


def test_sentences_come_from_arguments_files_and_standard_input(said, monkeypatch, capsys, tmp_path):
    from separable.models.saved_classifier import SavedClassifier

    texts = ["oil rises in may", "a cat sleeps", "", "rent falls in june"]
    label = SavedClassifier.load(said / "out" / "network").classify(texts)
    wanted = [
        {"text": t, "label": name, "probability": pytest.approx(p, abs=1e-5)}
        for t, (name, p) in zip(texts, label, strict=True)
    ]
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "table.csv").write_text("n,text\n" + "".join(f"{i},{t}\n" for i, t in enumerate(texts)))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
    for inputs in ([], [tmp_path / "lines.txt"], [tmp_path / "table.csv"]):
        code, out, _ = call(monkeypatch, capsys, "predict", said / "out", *inputs, "--json")
        assert code == 0
        assert [json.loads(line) for line in out.splitlines()] == wanted
    assert wanted[2]["label"] is None
    code, out, _ = call(monkeypatch, capsys, "predict", said / "out", texts[0], texts[2])
    assert out.splitlines() == [f"{wanted[0]['label'] or '(none)'}\t{label[0][1]:.4f}\t{texts[0]}", "(none)\t0.5000\t"]


def test_a_bad_line_keeps_its_place_and_results_go_whole_into_a_file(said, monkeypatch, capsys, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "oil rises"}\nno json\n{"text": "oil falls"}\n')
    given = ("predict", said / "out", tmp_path / "bad.jsonl", "--json", "--out", tmp_path / "rows.jsonl")
    code, out, err = call(monkeypatch, capsys, *given)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert (code, out) == (2, "")
    assert "line 2" in err
    assert ["error" in row for row in rows] == [False, True, False]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.jsonl", "rows.jsonl"]


@pytest.mark.parametrize("kind", ["said", "named"])
def test_standard_input_has_the_lines_that_the_same_file_has(kind, request, monkeypatch, capsys, tmp_path):
    content = "\ufeffoil\u2028rises\r\nAda\x85met \n\nUlm\x0bfalls".encode()
    (tmp_path / "lines.txt").write_bytes(content)
    given = ("predict", request.getfixturevalue(kind) / "out", "--json")
    from_file = call(monkeypatch, capsys, *given, tmp_path / "lines.txt")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert call(monkeypatch, capsys, *given, "-")[:2] == from_file[:2]
    assert from_file[1].count("\n") == 4


def test_entities_come_as_columns_and_with_their_places_in_a_plain_sentence(named, monkeypatch, capsys, tmp_path):
    code, out, _ = call(monkeypatch, capsys, "predict", named / "out", "Ada met Ulm.", "Bo met Rom.")
    assert code == 0
    assert out == "Ada B-PER\nmet O\nUlm B-LOC\n. O\n\nBo B-PER\nmet O\nRom B-LOC\n. O\n\n"
    (tmp_path / "lines.txt").write_text("Ada met Ulm.\n\nCy met Rom\n")
    _, out, _ = call(monkeypatch, capsys, "predict", named / "out", tmp_path / "lines.txt", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == ["Ada met Ulm.", "", "Cy met Rom"]
    assert rows[1]["entities"] == []
    for row in rows:
        assert [e["text"] for e in row["entities"]] == [row["text"][slice(*e["characters"])] for e in row["entities"]]
    assert rows[2]["entities"][0] == {"kind": "PER", "text": "Cy", "tokens": [0, 1], "characters": [0, 2]}


def test_columns_json_lines_and_the_tagger_itself_give_the_same_tags(named, monkeypatch, capsys, tmp_path):
    from separable.data import conll, entities
    from separable.models.saved_tagger import SavedTagger

    truth = conll.read(named / "test.conll")
    words, documents = [s.words for s in truth.sentences], [s.document for s in truth.sentences]
    found = SavedTagger.load(named / "out" / "network").tag(words, documents)
    wanted = [entities.iob2(entities.spans(tags), len(tags)) for tags in found]
    rows = [{"tokens": w, "document": str(d)} for w, d in zip(words, documents, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bare = "".join("".join(f"{word}\n" for word in w) + "\n" for w in words)
    (tmp_path / "one_column.txt").write_text(bare)
    for given in ([named / "test.conll"], [tmp_path / "rows.jsonl"], [tmp_path / "one_column.txt", "--columns"]):
        code, out, _ = call(monkeypatch, capsys, "predict", named / "out", *given, "--json")
        assert code == 0
        said = [json.loads(line) for line in out.splitlines()]
        assert [row["tokens"] for row in said] == words
        if given[0].name != "one_column.txt":  # which has no documents
            assert [row["tags"] for row in said] == wanted


def test_sounds_are_heard_and_a_damaged_one_costs_only_its_row(heard, monkeypatch, capsys, tmp_path):
    from separable.data import wav
    from separable.recipes import saved_listener

    (tmp_path / "empty.wav").write_bytes(b"")
    files = [heard / "sounds" / "low_3.wav", tmp_path / "empty.wav", heard / "sounds" / "high_1.wav"]
    code, out, err = call(monkeypatch, capsys, "predict", heard / "out", *files)
    assert code == 2
    assert "0 bytes" in err
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == [str(files[0]), str(files[2])]
    _, out, _ = call(monkeypatch, capsys, "predict", heard / "out", heard / "sounds", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    listener = saved_listener.Listener.load(heard / "out" / "network")
    clips = wav.read(heard / "sounds", None).clips
    chances, places = listener.scores([clip.samples for clip in clips]).softmax(1).max(1)
    assert [row["label"] for row in rows] == [listener.classes[place] for place in places.tolist()]
    assert [row["probability"] for row in rows] == pytest.approx(chances.tolist(), abs=1e-5)


def test_a_long_sound_streams_to_what_a_stream_of_the_whole_gives(heard, monkeypatch, capsys):
    from separable.data import wav
    from separable.recipes.saved_listener import Listener

    _, out, _ = call(monkeypatch, capsys, "predict", heard / "out", heard / "long.wav", "--every", "0.5", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    listener = Listener.load(heard / "out" / "network")
    (clip,) = wav.read(heard / "long.wav", None).clips
    scores = listener.stream().hear(clip.samples).softmax(1)
    picked = scores[24::25]  # every 0.5 s, of frames 0.02 s apart
    assert [row["seconds"] for row in rows] == [round(0.04 + 0.02 * (24 + 25 * i), 3) for i in range(len(picked))]
    assert [row["probability"] for row in rows] == pytest.approx(picked.amax(1).tolist(), abs=1e-4)
    _, out, _ = call(monkeypatch, capsys, "predict", heard / "out", heard / "fast.wav", "--every", "0.5", "--json")
    assert len(out.splitlines()) == len(rows)  # of twice the rate, resampled


REFUSED = {
    "an option of another task": (
        "said",
        ["--every", "2"],
        ["oil"],
        "--every = 2.0: does not go with a network for text",
    ),
    "a file that is not there": ("said", [], ["nothing.csv"], "INPUT = nothing.csv: is no file"),
    "an image that is not there": ("seen", [], ["no.png"], "INPUT = no.png: does not exist"),
    "no image at all": ("seen", [], [], "INPUT = none: must be given: image files"),
    "a sound that is not there": ("heard", [], ["no.wav"], "INPUT = no.wav: does not exist"),
    "rows closer than frames": (
        "heard",
        ["--every", "0.001"],
        ["{heard}/long.wav"],
        "--every = 0.001: must be at least",
    ),
    "columns for sentences": ("said", ["--columns"], ["oil"], "--columns = True: does not go with"),
    "an encoding that is none": ("said", ["--encoding", "utf-9"], ["{said}/test.csv"], "encoding = utf-9"),
    "results over a folder": ("said", ["--out", "{said}"], ["oil"], "--out = "),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cannot_be_predicted_is_one_sentence_and_exit_code_2(mistake, request, monkeypatch, capsys, tmp_path):
    kind, options, inputs, told = REFUSED[mistake]
    folder = request.getfixturevalue(kind)
    monkeypatch.chdir(tmp_path)
    places = {kind: folder}
    given = [text.format(**places) for text in (*inputs, *options)]
    code, out, err = call(monkeypatch, capsys, "predict", folder / "out", *given)
    assert (code, out) == (2, "")
    assert f"separable: {told}" in err


def test_a_small_network_has_no_stream(heard, monkeypatch, capsys, tmp_path):
    from separable.data.features import Features
    from separable.recipes.saved_listener import Listener, build

    shape = {"kind": "small", "num_classes": 2}
    Listener(build(shape), shape, Features(8000, coefficients=10), ["no", "yes"], 1.0).save(tmp_path / "small")
    code, _, err = call(monkeypatch, capsys, "predict", tmp_path / "small", heard / "long.wav", "--every", "1")
    assert code == 2
    assert 'only "causal" streams' in err


def test_a_folder_says_its_task_and_one_for_another_is_refused(said, named, tmp_path):
    from separable.models.saved_classifier import SavedClassifier
    from separable.models.saved_tagger import SavedTagger

    with pytest.raises(InputError, match="holds a network for text, where one for tokens is needed"):
        SavedTagger.load(said / "out" / "network")
    with pytest.raises(InputError, match="holds a network for tokens, where one for text is needed"):
        SavedClassifier.load(named / "out" / "network")
    (tmp_path / "network.json").write_text("{}")
    from separable.commands import network

    with pytest.raises(InputError, match=r"network\.json is damaged"):
        network.task_of(str(tmp_path))
    (tmp_path / "network.json").write_text('{"task": "smell"}')
    with pytest.raises(InputError, match="trained for 'smell'"):
        network.task_of(str(tmp_path))


def test_evaluate_wants_its_data_once(said, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "evaluate", said / "out")
    assert code == 2
    assert "DATA = none: must be given once" in err
    both = (said / "test.csv", "--data", said / "test.csv")
    assert call(monkeypatch, capsys, "evaluate", said / "out", *both)[0] == 2


def test_strict_evaluation_refuses_damaged_data(seen, monkeypatch, capsys):
    assert call(monkeypatch, capsys, "evaluate", seen / "out", seen / "test")[0] == 0
    code, _, err = call(monkeypatch, capsys, "evaluate", seen / "out", seen / "test", "--strict")
    assert code == 2
    assert "9.png" in err


def test_half_of_many_classes_keep_their_matrix_off_the_terminal(tmp_path, monkeypatch, capsys):
    from PIL import Image

    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 101))
    about = {"preparation": {"size": 2, "mean": [0.0], "std": [1.0], "channels": 1}}
    store.save(network, tmp_path / "net", example=torch.zeros(1, 1, 2, 2), about=about)
    for number in range(101):
        (tmp_path / "data" / f"{number:03d}").mkdir(parents=True)
        Image.new("L", (2, 2), number).save(tmp_path / "data" / f"{number:03d}" / "x.png")
    code, out, _ = call(monkeypatch, capsys, "evaluate", tmp_path / "net", tmp_path / "data", "--json")
    assert code == 0
    found = json.loads(out)
    assert "confusion" not in found
    assert found["images"] == 101
    assert found["top5"] >= found["top1"]


def test_labels_that_the_network_does_not_know_at_all_are_refused(said, monkeypatch, capsys, tmp_path):
    (tmp_path / "other.txt").write_text("oil rises@sun\noil falls@rain\n")
    code, _, err = call(monkeypatch, capsys, "evaluate", said / "out", tmp_path / "other.txt")
    assert code == 2
    assert "none of its labels rain, sun is a class of the network" in err


def test_an_unknown_label_that_no_sentence_has_is_told(said, monkeypatch, capsys, tmp_path):
    (tmp_path / "known.txt").write_text("oil rises@up\n")
    code, _, err = call(monkeypatch, capsys, "evaluate", said / "out", tmp_path / "known.txt", "--unknown-label", "oos")
    assert code == 0
    assert "is labelled 'oos'" in err
