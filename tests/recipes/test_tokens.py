"""The recipe from its command line: what it reaches in half a minute, goes on after a kill, and as two processes."""

import json
import lzma
import math
import random

import pytest
import torch
from safetensors.torch import save_file
from tests import real_data
from tests.recipes.runs import check_one_step, check_shares, finish, here, kill_in_mid_epoch, results

from separable.data import conll
from separable.errors import InputError
from separable.models.saved_tagger import SavedTagger
from separable.models.sentence_encoder import Bert
from separable.models.word_encoder import WordEncoder
from separable.recipes import command_line, result_page, token_reports, tokens


def columns(path, count, seed):
    """Invented sentences: people meet in towns; who stands before "met" is a person, what follows "in" a town."""
    draw = random.Random(seed)
    names = ["".join(draw.choice(["ka", "lo", "mi", "ren", "su"]) for _ in range(3)).title() for _ in range(40)]
    lines = []
    for number in range(count):
        a, b, c = draw.sample(names, 3)
        lines += ["-DOCSTART- O\n"] if number % 4 == 0 else []
        lines += [f"{a} B-PER", "met O", f"{b} B-PER", "in O", f"{c} B-LOC", "on O", f"{draw.randint(1, 30)} O", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    return columns(tmp_path / "train.conll", 240, 1), columns(tmp_path / "valid.conll", 80, 2)


def command(files, out, *options):
    train, valid = map(str, files)
    given = ["--train", train, "--valid", valid, "--out", str(out), "--batch-words", "120", "--width", "32"]
    return ["-m", "separable.recipes.tokens", *given, "--accelerator", "cpu", "--context", "document", *options]


def launch(files, out, *options):
    return finish(command(files, out, *options))


def f1(out):
    return results(out)["valid"]["entities"]["micro avg"]["f1-score"]


def test_killed_in_mid_epoch_it_goes_on_to_the_same_numbers(tmp_path, files):
    options = ("--epochs", "3", "--checkpoint-every", "5")
    here(tokens, command(files, tmp_path / "whole", *options)[2:])
    kill_in_mid_epoch(command(files, tmp_path / "killed", *options), tmp_path / "killed")
    launch(files, tmp_path / "killed", *options, "--resume", "yes")

    whole, resumed = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert len(whole["history"]) == 3
    assert resumed["history"] == whole["history"]
    assert resumed["valid"]["tokens"] == whole["valid"]["tokens"]
    first, second = (tmp_path / name / "network" / "weights.safetensors" for name in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("context", ["sentence", "document"])
def test_every_sentence_is_trained_on_by_one_process_alone(tmp_path, files, context, monkeypatch):
    check_shares(tokens, command(files, tmp_path, "--context", context)[2:], 240, monkeypatch)


def test_two_processes_train_one_network(tmp_path, files, monkeypatch):
    check_one_step(tokens, command(files, tmp_path / "two", "--batch-words", "840")[2:], 240, monkeypatch)


def test_a_run_is_not_begun_over_an_earlier_one(tmp_path, files):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    settings = command_line.parse(tokens.Settings, command(files, tmp_path)[2:])
    with pytest.raises(InputError, match="holds checkpoints or results of an earlier run"):
        tokens.main(settings)


def test_a_training_set_without_entities_and_a_context_that_is_none_are_refused(tmp_path, files):
    (tmp_path / "plain.conll").write_text("a O\n")
    plain = (tmp_path / "plain.conll", files[1])
    with pytest.raises(InputError, match="holds no entity"):
        tokens.main(command_line.parse(tokens.Settings, command(plain, tmp_path)[2:]))
    with pytest.raises(InputError, match='must be "sentence" or "document"'):
        tokens.main(tokens.Settings(out=tmp_path, train=files[0], valid=files[1], context="page"))


def test_a_saved_tagger_is_gone_on_from_with_other_tags_too(tmp_path, files):
    train = conll.read(files[0])
    first = tokens.Settings(out=tmp_path, width=16)
    saved = tokens.begin(train, first)
    saved.save(tmp_path / "network")
    settings = tokens.Settings(out=tmp_path, init=tmp_path / "network")
    again = tokens.begin(train, settings)
    assert again.lexicon == saved.lexicon
    for name, value in saved.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)
    other = conll.Corpus([conll.Sentence(["Kalo"], ["S-PERSON"])])
    network = tokens.begin(other, settings).network
    assert network.shape.tags == ["O", "B-PERSON", "I-PERSON", "E-PERSON", "S-PERSON"]
    assert torch.equal(network.join.weight, saved.network.join.weight)


REFUSED = {
    "width": ({"width": 64}, "width = 64: is kept from the network of init, which has 16"),
    "dilations": ({"dilations": (1, 4)}, "dilations = 1,4: is kept from the network of init, which has 1,2,4,1,2,4"),
    "dropout": ({"block_dropout": 0.9}, "block_dropout = 0.9: is kept"),
    "vectors": ({"vectors": "glove.txt"}, "vectors = glove.txt: is kept from the network of init, which has its own"),
    "memories": ({"context": "document"}, "context = document: needs memories, which the network of init lacks"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_a_saved_tagger_decides_are_refused(tmp_path, files, what):
    train = conll.read(files[0])
    tokens.begin(train, tokens.Settings(out=tmp_path, width=16)).save(tmp_path / "network")
    asked, rule = REFUSED[what]
    with pytest.raises(InputError, match=rule):
        tokens.begin(train, tokens.Settings(out=tmp_path, init=tmp_path / "network", **asked))
    same = tokens.Settings(out=tmp_path, init=tmp_path / "network", width=16, context="document", memory_after=())
    assert tokens.begin(train, same).network.shape.width == 16


def test_a_teacher_teaches_a_network_that_never_sees_a_tag(tmp_path, files):
    settings = command_line.parse(tokens.Settings, command(files, tmp_path / "first", "--epochs", "3")[2:])
    assert tokens.main(settings)["valid"]["entities"]["micro avg"]["f1-score"] > 0.9
    given = ("--epochs", "3", "--teacher", str(tmp_path / "first" / "network"), "--teacher-weight", "1")
    told = tokens.main(command_line.parse(tokens.Settings, command(files, tmp_path / "second", *given)[2:]))
    assert told["valid"]["entities"]["micro avg"]["f1-score"] > 0.9
    assert told["valid"]["teacher_f1"] > 0.9
    other = tmp_path / "other.conll"
    other.write_text("Kalo B-PERSON\n")
    with pytest.raises(InputError, match="knows other tags than the sentences to train on have"):
        tokens.main(command_line.parse(tokens.Settings, command((other, files[1]), tmp_path / "third", *given)[2:]))


def test_a_missing_test_file_is_told_before_training(tmp_path, files):
    given = command(files, tmp_path / "out", "--test", str(tmp_path / "none.conll"))[2:]
    with pytest.raises(InputError, match=r"none\.conll: cannot be read"):
        tokens.main(command_line.parse(tokens.Settings, given))
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_what_was_measured_is_written_before_the_test_set_is_read(tmp_path, files, monkeypatch):
    measured, wanted = tokens.evaluate, {}

    def evaluate(saved, part, teacher=None):
        wanted[len(part.sentences)] = (tmp_path / "out" / "results.json").is_file()
        return measured(saved, part, teacher)

    monkeypatch.setattr(tokens, "evaluate", evaluate)
    test = columns(tmp_path / "test.conll", 12, 3)
    given = command(files, tmp_path / "out", "--epochs", "1", "--test", str(test))[2:]
    tokens.main(command_line.parse(tokens.Settings, given))
    assert wanted == {80: False, 12: True}
    assert {"valid", "test"} <= results(tmp_path / "out").keys()


@pytest.fixture
def encoder_folder(tmp_path):
    """A small BERT with random weights, under its own names."""
    config = {
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": 12, "num_attention_heads": 3,
        "intermediate_size": 20, "num_hidden_layers": 1, "max_position_embeddings": 64, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1,
    }  # fmt: skip
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "met", "in", "on", *(f"##{c}" for c in "klmrsaeiou"), *"klmrs"]
    config["vocab_size"] = len(pieces)
    bert = Bert(config)
    theirs = {"norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm", "linear1": "intermediate.dense"}
    theirs |= {"linear2": "output.dense", "self_attn.out_proj": "attention.output.dense"}
    state = {"embeddings.LayerNorm." + kind: getattr(bert.norm, kind).data for kind in ("weight", "bias")}
    for ours, name in (("word", "word"), ("position", "position"), ("kind", "token_type")):
        state[f"embeddings.{name}_embeddings.weight"] = getattr(bert, ours).weight.data
    for name, value in bert.layers[0].state_dict().items():
        module, kind = name.rsplit(".", 1)
        if module == "self_attn":
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[f"encoder.layer.0.attention.self.{part}.{kind.removeprefix('in_proj_')}"] = third.clone()
        else:
            state[f"encoder.layer.0.{theirs[module]}.{kind}"] = value
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(pieces))
    save_file(state, folder / "model.safetensors")
    return folder


def test_an_encoder_is_heard_as_it_is_and_then_trained_further(tmp_path, files, encoder_folder):
    def run(name, *options):
        given = command(files, tmp_path / name, "--epochs", "1", *options)[2:]
        settings = command_line.parse(tokens.Settings, given)
        return tokens.main(settings), SavedTagger.load(tmp_path / name / "network").encoder.state_dict()

    begun = WordEncoder.load(encoder_folder).state_dict()
    frozen, kept = run("frozen", "--encoder", str(encoder_folder))
    assert all(torch.equal(kept[name], value.half().float()) for name, value in begun.items())
    tuned, moved = run("tuned", "--init", str(tmp_path / "frozen" / "network"), "--encoder-learning-rate", "1e-3")
    assert all(not torch.equal(moved[name], value) for name, value in kept.items() if "word.weight" not in name)
    assert tuned["trained_params"] - frozen["trained_params"] == sum(value.numel() for value in begun.values())
    assert tuned["valid"]["entities"]["micro avg"]["f1-score"] > 0


def test_settings_are_read_from_the_command_line():
    given = ["--out", "x", "--epochs", "3", "--dilations", "1,2", "--strict", "yes", "--learning-rate", "1e-3"]
    settings = command_line.parse(tokens.Settings, given)
    assert (settings.epochs, settings.dilations, settings.strict, settings.learning_rate) == (3, (1, 2), True, 1e-3)
    assert (str(settings.out), settings.test) == ("x", None)
    with pytest.raises(InputError, match="epochs = many: must be a number"):
        command_line.parse(tokens.Settings, ["--out", "x", "--epochs", "many"])


def test_reports_count_whole_entities_and_single_tokens():
    truth = [["B-PER", "E-PER", "O", "S-LOC"], ["O", "S-ORG"]]
    guess = [["S-PER", "S-PER", "O", "S-LOC"], ["O", "S-MISC"]]
    report = token_reports.measure(truth, guess)
    assert report["entities"]["micro avg"] == pytest.approx(
        {"precision": 1 / 4, "recall": 1 / 3, "f1-score": 2 / 7, "support": 3}
    )
    assert list(report["tokens"]) == [
        "B-LOC", "I-LOC", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER", "O",
        "micro avg", "macro avg", "weighted avg",
    ]  # fmt: skip
    assert report["tokens"]["B-PER"]["precision"] == 0.5
    assert report["tokens"]["micro avg"]["f1-score"] == pytest.approx(4 / 6)
    assert report["confusion"] == {
        "classes": ["LOC", "MISC", "ORG", "PER", "O"],
        "counts": [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 2, 0], [0, 0, 0, 0, 2]],
    }
    table = result_page.class_lines(report["tokens"])
    assert table[0].split() == ["precision", "recall", "f1-score", "support"]
    assert table[2].split() == ["B-LOC", "1.000", "1.000", "1.000", "1"]


def test_a_file_and_guesses_without_any_entity_give_json(tmp_path):
    report = token_reports.measure([["O", "O"]], [["O", "O"]])
    assert set(report["entities"]["macro avg"].values()) == {0.0}
    told = {"settings": {}, "minutes": 0.1, "processor_minutes": 0.1, "valid": report, "history": [{"loss": math.nan}]}
    result_page.write(tmp_path, "Nothing", told, [], [], [])
    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert found["history"] == [{"loss": None}]


@pytest.mark.data
def test_half_a_minute_on_real_sentences_reaches_its_score(tmp_path):
    """About 17,000 words of train, three epochs, without vectors; the score is pinned from below."""
    folder = real_data.folder("conll2003")
    with lzma.open(folder / "eng.train.xz", "rt", encoding="utf-8") as file:
        (tmp_path / "train.conll").write_text("".join(line for line, _ in zip(file, range(20_000), strict=False)))
    with open(folder / "eng.testa", encoding="utf-8") as file:
        (tmp_path / "valid.conll").write_text("".join(line for line, _ in zip(file, range(6_000), strict=False)))
    launch(
        (tmp_path / "train.conll", tmp_path / "valid.conll"), tmp_path / "out",
        "--epochs", "3", "--width", "128", "--batch-words", "200", "--context", "sentence",
    )  # fmt: skip
    assert f1(tmp_path / "out") > 0.6, results(tmp_path / "out")["history"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    saved = SavedTagger.load(tmp_path / "out" / "network")
    words = ["Blair", "met", "Chirac", "in", "London", "."]
    assert len(saved.tag([words])[0]) == len(words)
