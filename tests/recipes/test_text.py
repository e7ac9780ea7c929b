"""The text recipe: the same numbers after a kill, two processes, what is wrong in files, and a score on real text."""

import random
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tests import real_data
from tests.recipes.runs import check_one_step, check_shares, finish, kill_in_mid_epoch, results

from separable.data.sentences import Corpus, Sentence
from separable.errors import InputError
from separable.models.saved_classifier import Known, SavedClassifier
from separable.recipes import command_line, text, text_reports, text_teacher
from separable.recipes.text_rival import Rival


def rows(count, seed):
    """Invented news: the class says which of two numbers is larger, which is the first."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        a, b = draw.sample(range(10, 100), 2)
        subject = draw.choice(["Sales", "Profit", "Turnover"])
        made.append((f"{subject} came to EUR {a} mn from EUR {b} mn.", "up" if a > b else "down"))
    return made


def written(path, rows):
    path.write_text("text\tlabel\n" + "".join(f"{line}\t{label}\n" for line, label in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    return written(tmp_path / "train.tsv", rows(400, 1)), written(tmp_path / "valid.tsv", rows(100, 2))


def command(files, out, *options):
    given = ["--train", str(files[0]), "--valid", str(files[1]), "--out", str(out), "--width", "16"]
    return ["-m", "separable.recipes.text", *given, "--accelerator", "cpu", *options]


def launch(files, out, *options):
    return finish(command(files, out, *options))


def train(files, out, **options):
    given = {"width": 16, "epochs": 2, "accelerator": "cpu"} | options
    return text.main(text.Settings(out=out, train=files[0], valid=files[1], **given))


def epochs_of(told):
    return [line for line in told.splitlines() if line.startswith("epoch ")]


def test_a_mistake_is_one_sentence_and_exit_code_2(files, tmp_path):
    words = [sys.executable, *command(files, tmp_path / "run", "--learning-rate", "-1")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("separable: learning_rate = -1.0: ")
    assert len(done.stderr.splitlines()) == 1


def test_init_takes_the_folder_that_a_recipe_wrote(files, tmp_path):
    train(files, tmp_path / "first", epochs=1)
    settings = text.Settings(tmp_path / "second", train=files[0], valid=files[1], init=tmp_path / "first")
    settings.accelerator, settings.epochs = "cpu", 1
    assert len(text.main(settings)["history"]) == 1
    assert settings.init == tmp_path / "first" / "network"


def test_killed_in_mid_epoch_it_goes_on_to_the_same_numbers(tmp_path, files):
    options = ("--epochs", "8", "--checkpoint-every", "5")
    told = launch(files, tmp_path / "whole", *options).stderr
    losses = [row["loss"] for row in results(tmp_path / "whole")["history"]]
    assert [f"loss {loss:.4f}" in line for loss, line in zip(losses, epochs_of(told), strict=True)] == [True] * 8
    kill_in_mid_epoch(command(files, tmp_path / "killed", *options), tmp_path / "killed")
    launch(files, tmp_path / "killed", *options, "--resume", "yes")

    whole, resumed = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert len(whole["history"]) == 8
    assert resumed["history"] == whole["history"]
    first, second = (tmp_path / name / "network" / "weights.safetensors" for name in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()
    # only how the numbers compare tells the classes apart; a bag of the words alone stays at one half
    assert whole["valid"]["scores"]["network"]["accuracy"] > 0.95


def test_two_processes_train_one_network(tmp_path, files, monkeypatch):
    check_shares(text, command(files, tmp_path)[2:], 400, monkeypatch)
    check_one_step(text, command(files, tmp_path / "two", "--batch", "200")[2:], 400, monkeypatch)


def test_all_that_is_wrong_in_the_files_is_told_and_nothing_else_is_lost(tmp_path, files):
    valid = written(
        tmp_path / "v.tsv", [*rows(60, 5), ("A label never seen", "sideways"), ("", "up"), ("Who?", "none")]
    )
    report = train((files[0], valid), tmp_path / "out", test=valid, unknown_label="none", rival=True)
    part = report["test"]
    assert part["sentences"] == 61
    assert part["unseen_labels"] == {"sideways": 1}
    assert part["skipped"] == ["line 63: the sentence is empty"]
    assert set(part["scores"]) == {"network", "TF-IDF and SVM", "together"}
    assert all(way["accuracy"] < 1 for way in part["scores"].values())  # the label never seen counts as wrong
    assert part["unknown"]["sentences"] == 1
    said = text_reports.text(part)
    for words in ("sideways (1)", "1 lines left out, the first: line 63", "unknown AUROC"):
        assert words in said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"A label never seen</td><td>sideways</td><td>(up|down)</td>", page)
    saved = SavedClassifier.load(tmp_path / "out" / "network")
    again = text.evaluate(saved, text.read(valid, text.Settings(out=tmp_path)), "none")
    assert again["scores"]["network"] == part["scores"]["network"]


def test_files_that_cannot_be_trained_on_are_refused(tmp_path, files):
    one = written(tmp_path / "one.tsv", [("a", "up"), ("b", "up")])
    with pytest.raises(InputError, match=r"holds one class only, \['up'\]"):
        train((one, files[1]), tmp_path / "out")
    empty = written(tmp_path / "empty.tsv", [*rows(10, 1), ("", "flat"), (" ", "flat")])
    with pytest.raises(InputError, match=r"classes without a sentence: 'flat' \(2 bad lines\); the first: line 12"):
        train((empty, files[1]), tmp_path / "out")
    with pytest.raises(InputError, match="line 12: the sentence is empty"):
        train((empty, files[1]), tmp_path / "out", strict=True)
    other = written(tmp_path / "other.tsv", [("a", "x"), ("b", "y")])
    with pytest.raises(InputError, match="none of its labels x, y is a class of the training set"):
        train((files[0], other), tmp_path / "out")


def test_a_missing_test_file_is_told_before_training(tmp_path, files):
    with pytest.raises(InputError, match=r"none\.tsv: cannot be read"):
        train(files, tmp_path / "out", test=tmp_path / "none.tsv")
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_results_are_written_before_anything_is_measured(tmp_path, files, monkeypatch):
    def evaluate(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(text, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        train(files, tmp_path / "out", epochs=1)
    assert len(results(tmp_path / "out")["history"]) == 1
    assert (tmp_path / "out" / "report.html").is_file()


def test_settings_that_a_saved_classifier_decides_are_refused(tmp_path, files):
    corpus = text.read(files[0], text.Settings(out=tmp_path))
    network, table = text.begin(corpus, text.Settings(out=tmp_path, width=16, bag_share=0.0))
    SavedClassifier(network, table, torch.zeros(0, 16), Known()).save(tmp_path / "network")
    for asked in ({"width": 32}, {"bag_share": 0.5}, {"vectors": "glove.txt"}, {"dilations": (1,)}):
        (name,) = asked
        with pytest.raises(InputError, match=f"{name} = .* is kept from the network of init"):
            text.begin(corpus, text.Settings(out=tmp_path, init=tmp_path / "network", **asked))
    same = text.Settings(out=tmp_path, init=tmp_path / "network", width=16, dilations=(1, 2))
    assert text.begin(corpus, same)[0].shape.width == 16


def test_without_validation_the_last_epoch_is_kept(tmp_path, files):
    report = train((files[0], None), tmp_path / "out", epochs=3, bag_share=0.0)
    assert [row["valid_score"] for row in report["history"]] == [1.0, 2.0, 3.0]
    assert "valid" not in report
    kept = torch.load(tmp_path / "out" / "checkpoints" / "best.ckpt", weights_only=True)
    assert kept["epoch"] == 2


def test_a_saved_classifier_is_gone_on_from_with_other_classes_too_and_teaches(tmp_path, files):
    train(files, tmp_path / "first", epochs=6)
    first = tmp_path / "first" / "network"
    saved = SavedClassifier.load(first).network.state_dict()
    corpus = text.read(files[0], text.Settings(out=tmp_path))
    network, table = text.begin(corpus, text.Settings(out=tmp_path, init=first))
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    assert "turnover" in table.lexicon.changes
    other = Corpus([Sentence("Sales came", "x"), Sentence("Profit went", "y"), Sentence("Turnover", "z")])
    network, _ = text.begin(other, text.Settings(out=tmp_path, init=first))
    assert network.shape.classes == ["x", "y", "z"]
    assert torch.equal(network.join.weight, saved["join.weight"])
    taught = text_teacher.open_teacher(corpus, first).of_training
    guess = [["down", "up"][g] for g in taught.argmax(1).tolist()]
    assert sum(a == b for a, b in zip(guess, corpus.labels, strict=True)) > 390
    report = train(files, tmp_path / "second", teacher=first, teacher_weight=1.0, epochs=6)  # never sees a label
    assert report["valid"]["scores"]["network"]["accuracy"] > 0.9
    assert report["valid"]["scores"]["teacher"]["accuracy"] > 0.9
    with pytest.raises(InputError, match="knows other classes than the training set has"):
        text_teacher.open_teacher(other, first)


def test_an_encoder_tells_of_each_training_sentence_without_having_been_fitted_on_it():
    draw = torch.Generator().manual_seed(0)
    places = {f"{label} {n}": torch.randn(8, generator=draw) for label in "xy" for n in range(40)}
    train = Corpus([Sentence(line, line[0]) for line in places])

    def encode(texts):
        """Noise, which a fit learns by heart and nothing can foretell."""
        return F.normalize(torch.stack([places[line] for line in texts]), dim=1)

    teacher = text_teacher.EncoderTeacher(train, encode)
    truth = torch.tensor([label == "y" for label in train.labels]).long()
    right = [
        (share.argmax(1) == truth).double().mean()
        for share in (teacher.of_training, teacher.probabilities(train.texts))
    ]
    assert right[0] < 0.6 < right[1]


def test_an_encoder_whose_vectors_tell_the_classes_apart_teaches_them():
    train = Corpus([Sentence(f"{label} {n}", label) for n in range(20) for label in ("up", "down", "flat")])
    directions = {"up": [1.0, 0.2], "down": [-1.0, 0.2], "flat": [0.0, 1.0]}
    teacher = text_teacher.EncoderTeacher(train, lambda texts: torch.tensor([directions[t.split()[0]] for t in texts]))
    assert [train.classes()[k] for k in teacher.of_training.argmax(1).tolist()] == train.labels
    assert [train.classes()[k] for k in teacher.probabilities(["flat 99", "up 99"]).argmax(1).tolist()] == [
        "flat",
        "up",
    ]


def test_the_rival_averages_well_and_reads_chinese_by_characters():
    texts = ["净利大增", "净利增长", "净利大降", "净利下降"] * 10
    labels = ["good", "good", "bad", "bad"] * 10
    rival = Rival(texts, labels)
    share = rival.probabilities(["增长", "下降"], ["good", "bad"])
    assert share.argmax(1).tolist() == [0, 1]
    assert torch.allclose(share.sum(1), torch.ones(2))


def test_the_surest_mistakes_come_first():
    part = Corpus([Sentence(t, label) for t, label in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "y"))])
    share = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    report = text_reports.measure(part, {"network": share}, share.amax(1), 0.0, ["x", "y"], None)
    shown = [(row["sentence"], row["label"], row["given"], row["probability"]) for row in report["examples"]]
    assert shown == [("d", "y", "x", 0.8), ("c", "x", "y", 0.7), ("b", "y", "x", 0.6)]


def test_the_unknown_is_measured_as_defined():
    part = Corpus([Sentence(t, label) for t, label in (("a", "x"), ("b", "y"), ("c", "oos"), ("d", "oos"))])
    share = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.5, 0.5]])
    known = torch.tensor([3.0, 2.0, 2.5, 1.0])
    report = text_reports.measure(part, {"network": share}, known, 1.5, ["x", "y"], "oos")
    assert report["scores"]["network"] == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
    assert report["unknown"] == {
        "sentences": 2,
        "auroc": 0.75,
        "auroc_of_largest_probability": 0.75,
        "unknown_refused": 0.5,
        "known_kept": 1.0,
    }


@pytest.mark.data
def test_half_a_minute_on_real_questions_reaches_its_score(tmp_path):
    """The 20 classes of Banking77 that come first, without vectors; the score is pinned from below."""
    folder = real_data.folder("banking77")
    parts = []
    for name in ("train", "test"):
        corpus = text.read(folder / f"{name}.csv.xz", text.Settings(out=tmp_path))
        chosen = sorted(set(corpus.labels))[:20]
        parts.append(
            written(tmp_path / f"{name}.tsv", [(s.text, s.label) for s in corpus.sentences if s.label in chosen])
        )
    report = train((parts[0], None), tmp_path / "out", test=parts[1], epochs=4, width=64)
    assert report["test"]["scores"]["network"]["accuracy"] > 0.85
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_settings_are_read_from_the_command_line():
    settings = command_line.parse(
        text.Settings, ["--out", "x", "--dilations", "1,4", "--rival", "yes", "--balance", "0.5"]
    )
    assert (settings.dilations, settings.rival, settings.balance, settings.valid) == ((1, 4), True, 0.5, None)
