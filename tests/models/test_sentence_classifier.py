"""The sentence classifier: it reads a sentence the same in any company; its halves sum; its folder gives it back."""

import json

import pytest
import torch

from separable.data import vectors
from separable.data.sentence_rows import SentenceRows, SentenceTable
from separable.errors import InputError
from separable.layers import SeparableConv1d
from separable.models.saved_classifier import SavedClassifier
from separable.models.sentence_classifier import SentenceClassifier, Shape

TEXTS = [
    "profit rose to 13.1 mn from 8.7 mn",
    "profit fell",
    "净利增12%",
    "the rain fell all day and profit too",
    "净利降",
]
WORDS = vectors.Vectors({"profit": 0, "rain": 1}, torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))


def make(classes=3, **options):
    torch.manual_seed(3)
    table = SentenceTable.learn(TEXTS * 2, WORDS, 1 << 8, 1 << 7)
    shape = Shape(
        [f"class {n}" for n in range(classes)], len(table.lexicon.changes), vector_size=6, width=16,
        piece_buckets=1 << 7, bag_buckets=1 << 8, **options,
    )  # fmt: skip
    network = SentenceClassifier(shape)
    for parameter in network.parameters():  # zeros at the start would hide what a part does
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval(), table


@pytest.mark.parametrize("classes", [3, 70])  # 70 makes the bag of low rank
@torch.no_grad()
def test_a_sentence_reads_the_same_alone_and_among_others(classes):
    network, table = make(classes)
    rows = SentenceRows(TEXTS, [0] * len(TEXTS), table)
    logits, halves, vector = network(rows.batch([3, 1, 0, 4, 2]))
    assert logits.shape == (5, classes)
    for place, number in enumerate([3, 1, 0, 4, 2]):
        alone, alone_halves, alone_vector = network(rows.batch([number]))
        torch.testing.assert_close(alone[0], logits[place])
        torch.testing.assert_close(alone_vector[0], vector[place])
        for half, alone_half in zip(halves, alone_halves, strict=True):
            torch.testing.assert_close(alone_half[0], half[place])


@torch.no_grad()
def test_the_halves_sum_with_the_share_of_the_bag_and_it_can_be_left_out():
    network, table = make(bag_share=0.5)
    batch = SentenceRows(TEXTS, [0] * 5, table).batch(range(5))
    logits, (ordered, counted), _ = network(batch)
    torch.testing.assert_close(logits, ordered + 0.5 * counted)
    without, _ = make(bag_share=0.0)
    logits, halves, _ = without(batch)
    assert halves == []
    assert without.bag is None
    assert logits.shape == (5, 3)


@torch.no_grad()
def test_the_order_of_words_reaches_one_half_and_known_words_need_no_training():
    network, table = make()
    rows = SentenceRows(["rain fell profit rose", "profit fell rain rose"], [0, 0], table)
    _, (ordered, _), _ = network(rows.batch([0, 1]))
    assert (ordered[0] - ordered[1]).abs().max() > 1e-3
    network.change.weight.zero_()
    _, (known, _), _ = network(SentenceRows(["rain"], [0], table).batch([0]))
    table.words.vectors[table.words.vector_places["rain"] + 1] += 1
    _, (moved, _), _ = network(SentenceRows(["rain"], [0], table).batch([0]))
    assert (known - moved).abs().max() > 1e-3


def test_every_parameter_learns_and_the_convolutions_are_ours():
    network, table = make()
    logits, halves, _ = network.train()(SentenceRows(TEXTS, [0, 1, 2, 0, 1], table).batch(range(5)))
    sum(half.square().sum() for half in [logits, *halves]).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
    assert sum(isinstance(module, SeparableConv1d) for module in network.modules()) == 3


def saved_of(network, table, texts=TEXTS):
    rows = SentenceRows(texts, [0] * len(texts), table)
    return SavedClassifier.of(network, rows, rows)


def test_a_saved_network_answers_as_before_without_pickle(tmp_path):
    network, table = make()
    table.vectors.table = table.vectors.table.half().float()
    table = SentenceTable(table.lexicon, table.vectors, table.rarity.tolist(), table.piece_buckets)
    saved = saved_of(network, table)
    saved.save(tmp_path / "network")
    names = sorted(path.name for path in (tmp_path / "network").iterdir())
    assert names == ["network.json", "vectors.safetensors", "weights.safetensors"]
    loaded = SavedClassifier.load(tmp_path / "network")
    texts = [*TEXTS, "never seen before", ""]
    before, after = saved.run(texts), loaded.run(texts)
    assert torch.equal(before.logits, after.logits)
    torch.testing.assert_close(before.known, after.known, atol=2e-2, rtol=2e-3)  # neighbours are kept in float16
    assert loaded.known == saved.known


def test_the_threshold_keeps_its_share_of_validation_and_an_empty_text_is_unknown():
    network, table = make()
    texts = [f"{a} {b}" for a in TEXTS for b in (*TEXTS, "and so", "or not", "it was", "all of it")]
    saved = saved_of(network, table, texts)
    kept = (saved.run(texts).known >= saved.known.threshold).float().mean()
    assert 0.9 < float(kept) <= 1.0
    assert saved.classify(["", "  "])[0][0] is None
    assert saved.classify([]) == []
    label, share = saved.classify([texts[0]])[0]
    assert label is None or label in network.shape.classes
    assert 1 / 3 <= share <= 1


def test_without_validation_everything_counts_as_known():
    network, table = make()
    saved = SavedClassifier.of(network, SentenceRows(TEXTS, [0] * 5, table), None)
    assert all(label is not None for label, _ in saved.classify(["nothing like it", *TEXTS]))


@pytest.mark.parametrize("damage", ["missing", "shape", "weights"])
def test_a_folder_that_is_no_saved_classifier_is_told(tmp_path, damage):
    folder = tmp_path / "network"
    saved_of(*make()).save(folder)
    if damage == "missing":
        (folder / "vectors.safetensors").unlink()
    elif damage == "shape":
        about = json.loads((folder / "network.json").read_text())
        about["shape"]["width"] = 24
        (folder / "network.json").write_text(json.dumps(about))
    else:
        (folder / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"is no saved network for text|is not a file|must be safetensors"):
        SavedClassifier.load(folder)
