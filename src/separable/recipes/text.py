"""Train a classifier of sentences, English or Chinese or mixed; read from the top, copy it, change it.

    python -m separable.recipes.text --train a.csv --valid b.csv --test c.csv --vectors glove.txt --out runs/text

Everything is chosen on `valid`; without it, the last epoch is kept. `test` is read once, at the end.
`--unknown-label oos` names a label of valid and test that stands for "none of the classes". `--rival yes` adds the rows
of TF-IDF with a linear SVM, alone and together with the network. docs/recipes.md has what it reaches.
"""

import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.data import sentences, vectors
from separable.data.sentence_rows import SentenceRows, SentenceTable
from separable.data.sentences import Corpus
from separable.errors import InputError
from separable.models.saved_classifier import SavedClassifier
from separable.models.sentence_classifier import SentenceClassifier, Shape
from separable.recipes import beginning, command_line, going_on, learning, result_page, running, text_reports
from separable.recipes.rules import Count, Counts, Rate, Share, ShareBelow1, Weight
from separable.recipes.running import Running
from separable.recipes.text_rival import Rival
from separable.recipes.text_teacher import Teacher, open_teacher


@dataclass
class Settings(Running):
    """What can be set; what each task of docs/recipes.md was measured with stands there."""

    train: Path = Path("train.csv")  # csv, tsv, JSON lines or text@label; packed or not
    valid: Path | None = None  # chooses the best epoch; without, the last is kept
    test: Path | None = None  # read once, at the end
    vectors: Path | None = None  # text or safetensors; without, words are learned from the training set alone
    encoding: str = "utf-8"  # of all three files
    text_column: str | None = None  # of csv, tsv and JSON lines; without, the usual names are looked for
    label_column: str | None = None  # likewise
    unknown_label: str | None = None  # stands for none of the classes; such sentences are never trained on
    init: Path | None = None  # a saved classifier to go on from; its words and shape are kept, classes may differ
    teacher: Path | None = None  # a saved classifier of the same classes, or minilm: see text_teacher
    teacher_weight: Share = 0.5  # of them in the loss
    strict: bool = False  # refuse a file that has a bad line, rather than leave the line out
    rival: bool = False  # also measure TF-IDF with a linear SVM, alone and together
    epochs: Count = 12
    batch: Count = 32  # sentences of a batch
    learning_rate: Rate = 4e-3
    bag_share: Weight = 1.0  # of the linear half's logits in the sum; 0 for none
    bag_rank: Count = 64  # of its matrix, where there are more classes than that
    bag_learning_rate: Weight = 6e-4  # of the linear half
    weight_decay: Weight = 0.01  # of AdamW
    average: ShareBelow1 = 0.99
    smoothing: ShareBelow1 = 0.1  # of labels
    halves: Weight = 0.5  # weight of each half's own loss beside that of their sum
    balance: Weight = 0.0  # weight of a class is (1 / its share) to this power: 1 where classes matter equally
    width: Count = 96  # channels of the blocks
    dilations: Counts = field(default_factory=lambda: (1, 2))  # of the blocks, one each
    word_dropout: ShareBelow1 = 0.1  # of a word's vector, at once
    input_dropout: ShareBelow1 = 0.2  # of what enters the blocks
    block_dropout: ShareBelow1 = 0.1  # inside each block
    output_dropout: ShareBelow1 = 0.3  # of the sentence's vector
    bag_dropout: ShareBelow1 = 0.2  # of the linear half


KEPT = (
    "width",
    "dilations",
    "bag_share",
    "bag_rank",
    "word_dropout",
    "input_dropout",
    "block_dropout",
    "output_dropout",
    "bag_dropout",
)  # settings that are part of the network's shape
TABLES = (torch.nn.Embedding, torch.nn.EmbeddingBag)


class ClassifierTraining(running.Training):
    """The network, its batches, its loss and its optimiser."""

    def __init__(
        self,
        network: SentenceClassifier,
        settings: Settings,
        train: SentenceRows,
        valid: SentenceRows | None,
        taught: Tensor | None,
    ):
        super().__init__()
        self.taught = taught  # [sentences of train, K], the teacher's probabilities
        self.network, self.settings = network, settings
        self.train_set, self.valid_set = train, valid
        self.valid_groups = valid.groups(256) if valid is not None else [[]]
        self.planned: tuple[int, list[list[int]]] = (-1, [])
        share = torch.bincount(train.labels, minlength=len(network.shape.classes)) / len(train)
        self.weights = (1 / (share * len(share))) ** settings.balance  # [K]
        self.pairs: list[Tensor] = []

    def plan(self, epoch: int) -> list[list[int]]:
        """The sentences of each batch of an epoch; every process has its own share, all shares equally long."""
        if self.planned[0] != epoch:
            draw = random.Random(self.settings.seed * 1000 + epoch)  # noqa: S311 - no secret
            rank, processes = running.world()
            groups = self.train_set.groups(self.settings.batch, draw)
            self.planned = epoch, groups[rank : len(groups) - len(groups) % processes : processes]
        return self.planned[1]

    def train_dataloader(self) -> running.Steps:
        return running.Steps(len(self.plan(0)))

    def val_dataloader(self) -> running.Steps:
        return running.Steps(len(self.valid_groups))

    def training_step(self, number: int, batch_idx: int) -> Tensor:
        running.seed_step(self.settings.seed, self)
        numbers = self.plan(self.current_epoch)[batch_idx]
        batch = self.train_set.batch(numbers).to(self.device)
        logits, halves, _ = self.network(batch)
        weights = self.weights.to(self.device)

        def loss_of(logits: Tensor) -> Tensor:
            own = F.cross_entropy(logits, batch.labels, weights, label_smoothing=self.settings.smoothing)
            if self.taught is None:
                return own
            taught = F.cross_entropy(logits, self.taught[numbers].to(self.device), weights)
            return own + self.settings.teacher_weight * (taught - own)

        loss = loss_of(logits)
        for half in halves:
            loss = loss + self.settings.halves * loss_of(half)
        return self.noted(loss)

    def validation_step(self, number: int, batch_idx: int) -> None:
        if self.valid_set is None:
            return
        batch = self.valid_set.batch(self.valid_groups[batch_idx]).to(self.device)
        self.pairs.append(torch.stack([batch.labels, self.network(batch)[0].argmax(1)]).cpu())

    def on_validation_epoch_end(self) -> None:
        """Macro F1; without a validation set the number of the epoch, so that the last one is kept."""
        score = float(self.current_epoch + 1)
        if self.valid_set is not None:
            truth, guess = torch.cat(self.pairs, 1)
            score = text_reports.macro_f1(truth.tolist(), guess.tolist())
        self.pairs = []
        self.log("valid_score", score)
        self.end_epoch(valid_score=score)

    def configure_optimizers(self) -> Any:
        bag = [p for name, p in self.network.named_parameters() if name.startswith("bag")]
        rest = [p for name, p in self.network.named_parameters() if not name.startswith("bag")]
        groups = [
            {"params": rest, "lr": self.settings.learning_rate},
            {"params": bag, "lr": self.settings.bag_learning_rate},
        ]
        share = learning.half_cosine(self.settings.epochs * len(self.plan(0)))
        return learning.adamw(groups, self.settings, share, weight_decay=self.settings.weight_decay)


def main(settings: Settings, teacher: Teacher | None = None) -> dict[str, Any]:
    """Read, train, choose the best epoch on valid, save the network, report on valid and test.

    `teacher` is one at hand, in place of that which the settings name. Writes below settings.out: network/ (see
    models.saved_classifier), results.json, report.html, checkpoints/, tensorboard/.
    """
    beginning.check(settings)
    paths = {"train": settings.train, "valid": settings.valid, "test": settings.test}
    parts = {name: read(path, settings) for name, path in paths.items() if path}
    train = known(parts["train"], settings)
    train.check_trainable(settings.train)
    torch.manual_seed(settings.seed)
    network, table = begin(train, settings)
    places = {label: place for place, label in enumerate(network.shape.classes)}
    rows = SentenceRows(train.texts, [places[label] for label in train.labels], table)
    held = held_out(known(parts["valid"], settings), places, table, settings) if "valid" in parts else None
    if teacher is None and settings.teacher:
        teacher = open_teacher(train, settings.teacher)
    module = ClassifierTraining(network, settings, rows, held, teacher.of_training if teacher else None)
    trained = learning.train(module, settings, monitor="valid_score")
    if trained is None:
        return {}  # one process saves and reports
    saved = SavedClassifier.of(network, rows, held)
    saved.save(settings.out / "network", overwrite=True)
    results: dict[str, Any] = {
        **trained,
        "trained_params": sum(p.numel() for p in network.parameters()),
        "table_params": sum(m.weight.numel() for m in network.modules() if isinstance(m, TABLES)),
        "skipped": {"train": [str(bad) for bad in train.skipped], "vectors": table.vectors.skipped},
    }
    text_reports.write(settings.out, results)  # before anything is measured: nothing made is lost
    rival = Rival(train.texts, train.labels) if settings.rival else None
    for name in ("valid", "test"):
        if name in parts:
            results[name] = evaluate(saved, parts[name], settings.unknown_label, rival, teacher)
            text_reports.write(settings.out, results)
    return results


def read(path: Path, settings: Settings) -> Corpus:
    """A file as the settings say to read it."""
    return sentences.read(path, settings.strict, settings.encoding, settings.text_column, settings.label_column)


def known(corpus: Corpus, settings: Settings) -> Corpus:
    """The sentences that belong to a class."""
    return Corpus([s for s in corpus.sentences if s.label != settings.unknown_label], corpus.skipped)


def held_out(valid: Corpus, places: dict[str, int], table: SentenceTable, settings: Settings) -> SentenceRows:
    """The validation sentences whose label is a class; the others are told in the report, as wrong."""
    there = [s for s in valid.sentences if s.label in places]
    if not there:
        rule = f"none of its labels {', '.join(valid.classes()[:5])} is a class of the training set"
        raise InputError("valid", str(settings.valid), rule)
    return SentenceRows([s.text for s in there], [places[s.label] for s in there], table)


def begin(train: Corpus, settings: Settings) -> tuple[SentenceClassifier, SentenceTable]:
    """A new network for these sentences and vectors, or the saved one of `init` with what fits of its weights."""
    if settings.init:
        saved = SavedClassifier.load(settings.init)
        kept = {name: getattr(saved.network.shape, name) for name in KEPT}
        going_on.check(settings, kept | {"vectors": "its own"})
        network = SentenceClassifier(replace(saved.network.shape, classes=train.classes()))
        own, given = network.state_dict(), saved.network.state_dict()
        same = network.shape.classes == saved.network.shape.classes
        own.update({name: v for name, v in given.items() if same or not name.startswith(("decide.", "bag."))})
        network.load_state_dict(own)
        return network, saved.table
    words = vectors.read(settings.vectors) if settings.vectors else vectors.none()
    words.table = words.table.half().float()  # as they will be saved
    shape = Shape(
        classes=train.classes(),
        changes=0,
        vector_size=words.table.shape[1],
        **{name: getattr(settings, name) for name in KEPT} | {"dilations": tuple(settings.dilations)},
    )
    table = SentenceTable.learn(train.texts, words, shape.bag_buckets if shape.bag_share else 0, shape.piece_buckets)
    shape.changes = len(table.lexicon.changes)
    return SentenceClassifier(shape), table


def evaluate(
    saved: SavedClassifier,
    part: Corpus,
    unknown_label: str | None = None,
    rival: Rival | None = None,
    teacher: Teacher | None = None,
) -> dict[str, Any]:
    """Reports on labelled sentences; what was left out of them; labels that training never saw; sentences a second.

    A sentence of a label never seen counts as wrong, in every row.
    """
    began = time.perf_counter()
    found = saved.run(part.texts)
    seconds = time.perf_counter() - began
    classes = saved.network.shape.classes
    share = found.logits.softmax(1)
    ways = {"network": share}
    if rival is not None:
        ways["TF-IDF and SVM"] = rival.probabilities(part.texts, classes)
        ways["together"] = (share + ways["TF-IDF and SVM"]) / 2
    if teacher is not None:
        ways["teacher"] = teacher.probabilities(part.texts)
    report = text_reports.measure(part, ways, found.known, saved.known.threshold, classes, unknown_label)
    return {**report, "skipped": [str(bad) for bad in part.skipped], "sentences_per_s": len(part.texts) / seconds}


def told(results: dict[str, Any]) -> str:
    """What was measured, for a terminal."""
    return result_page.told(results, text_reports.text)


if __name__ == "__main__":
    command_line.run(Settings, main, told)
