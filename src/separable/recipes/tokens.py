"""Train a convolutional tagger of entities on tagged sentences; read from the top, copy it, change it.

    python -m separable.recipes.tokens --train eng.train --valid eng.testa --test eng.testb --vectors glove.txt --out runs/ner

`--context sentence` reads each sentence alone; `--context document` keeps documents together and lets a word look at its
other places in them. Everything is chosen on `valid`; `test` is read once, at the end. docs/recipes.md has what it reaches.
Source: Strubell et al. 2017, arXiv:1702.02098; Ma and Hovy 2016, arXiv:1603.01354.
"""

import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from separable.data import conll, entities, vectors
from separable.data.rows import Batch, Corpus
from separable.data.words import Lexicon, WordTable
from separable.models.saved_tagger import SavedTagger
from separable.models.tagger import Shape, Tagger
from separable.recipes import running, token_reports
from separable.recipes.running import L, Running


@dataclass
class Settings(Running):
    """What can be set, with what docs/recipes.md was measured with."""

    train: Path = Path("train.conll")
    valid: Path = Path("valid.conll")
    test: Path | None = None
    vectors: Path | None = None  # text or safetensors; without, words are learned from the training set alone
    strict: bool = False  # refuse a file that has a bad line, rather than leave its sentence out
    context: str = "sentence"  # or "document"
    epochs: int = 14
    batch_words: int = 600
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    forget: float = 0.43  # a word of count c becomes unknown with probability forget / (forget + c): 0.3 for c = 1
    dropout: float = 0.25  # of features, inputs and blocks
    width: int = 256
    dilations: Sequence[int] = field(default_factory=lambda: (1, 2, 4, 1, 2, 4))
    memory_after: Sequence[int] = field(default_factory=lambda: (2, 4))  # blocks; used where context is "document"


class TaggerTraining(L.LightningModule):
    """The network, its batches, its loss and its optimiser."""

    def __init__(self, network: Tagger, settings: Settings, train: Corpus, valid: Corpus):
        super().__init__()
        self.network, self.settings = network, settings
        self.corpora = {"train": train, "valid": valid}
        self.plans: dict[int, list[list[int]]] = {}
        self.right = self.guessed = self.true = 0

    def plan(self, epoch: int) -> list[list[int]]:
        """The sentences of each batch of an epoch, every process its own share, all shares equally long."""
        if epoch not in self.plans:
            draw = random.Random(self.settings.seed * 1000 + epoch)  # noqa: S311 - no secret
            rank, processes = running.world()
            groups = group(self.corpora["train"], self.settings.context, self.settings.batch_words, draw)
            self.plans = {epoch: groups[rank : len(groups) - len(groups) % processes : processes]}
        return self.plans[epoch]

    def train_dataloader(self) -> running.Steps:
        # epochs differ by a batch or two in number; all take as many as the first
        return running.Steps(len(self.plan(0)))

    def val_dataloader(self) -> running.Steps:
        return running.Steps(len(self._valid_groups()))

    def training_step(self, number: int, batch_idx: int) -> torch.Tensor:
        settings = self.settings
        running.seed_step(settings.seed, self)
        plan = self.plan(self.current_epoch)
        batch = make_batch(self.corpora["train"], plan[batch_idx % len(plan)], settings.context, settings.forget)
        loss = self.network.loss(batch.to(self.device))
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            self.log("loss", loss)
        return loss

    def validation_step(self, number: int, batch_idx: int) -> None:
        corpus, numbers = self.corpora["valid"], self._valid_groups()[batch_idx]
        batch = make_batch(corpus, numbers, self.settings.context)
        found = self.network.decode(batch.to(self.device)).tolist()
        tags = self.network.shape.tags
        for guess, truth, length in zip(found, batch.tags.tolist(), batch.lengths.tolist(), strict=True):
            a, b = ({*entities.spans([tags[t] for t in row[:length]])} for row in (guess, truth))
            self.right, self.guessed, self.true = self.right + len(a & b), self.guessed + len(a), self.true + len(b)

    def on_validation_epoch_end(self) -> None:
        self.log("valid_f1", 2 * self.right / max(self.guessed + self.true, 1))
        self.right = self.guessed = self.true = 0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay, fused=True
        )
        total = self.settings.epochs * len(self.plan(0))
        warm = max(1, total // 20)

        def share(step: int) -> float:
            """Up in a twentieth of the steps, then down along a half cosine."""
            return min(1.0, (step + 1) / warm) * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _valid_groups(self) -> list[list[int]]:
        if not hasattr(self, "_groups"):
            self._groups = group(self.corpora["valid"], self.settings.context, self.settings.batch_words)
        return self._groups


def group(corpus: Corpus, context: str, words: int, draw: random.Random | None = None) -> list[list[int]]:
    """Sentence numbers of each batch, about `words` words: sentences of like length, or whole documents.

    With `draw` their order is drawn: documents anew, sentences among those of like length.
    """
    groups: list[list[int]] = [[]]
    if context == "document":
        documents = corpus.by_document()
        if draw:
            draw.shuffle(documents)
        for document in documents:
            if sum(corpus.lengths[n] for n in groups[-1]) >= words - 100:
                groups.append([])
            groups[-1].extend(document)
    else:
        jitter = [length + (draw.random() * 3 if draw else 0) for length in corpus.lengths]
        for n in sorted(range(len(jitter)), key=jitter.__getitem__):
            longest = max([corpus.lengths[m] for m in groups[-1]], default=0)
            if groups[-1] and (len(groups[-1]) + 1) * max(longest, corpus.lengths[n]) > words:
                groups.append([])
            groups[-1].append(n)
    if draw:
        draw.shuffle(groups)
    return groups


def make_batch(corpus: Corpus, numbers: Sequence[int], context: str, forget: float = 0.0) -> Batch:
    """Sentences alone in their rows, or packed in rows of 64 with their documents' memory."""
    document = context == "document"
    return corpus.batch(numbers, width=64 if document else 0, memory=document, forget=forget)


def main(settings: Settings) -> dict[str, Any]:
    """Read, train, choose the best epoch, save the network, report on valid and test."""
    train, valid = (conll.read(path, settings.strict) for path in (settings.train, settings.valid))
    words = vectors.read(settings.vectors) if settings.vectors else vectors.none()
    lexicon = Lexicon.of(word for s in train.sentences for word in s.words)
    table = WordTable(lexicon, words)
    shape = Shape(
        tags=entities.bioes_tags(train.kinds()),
        changes=len(lexicon.changes),
        characters=len(lexicon.characters),
        affixes=[len(parts) for parts in lexicon.affixes],
        vector_size=words.table.shape[1],
        width=settings.width,
        dilations=tuple(settings.dilations),
        memory_after=tuple(settings.memory_after) if settings.context == "document" else (),
        feature_dropout=settings.dropout,
        input_dropout=settings.dropout,
        block_dropout=settings.dropout,
    )
    torch.manual_seed(settings.seed)
    places = {tag: place for place, tag in enumerate(shape.tags)}
    corpora = [Corpus(part.sentences, table, places) for part in (train, valid)]
    module = TaggerTraining(Tagger(shape), settings, *corpora)
    began = time.perf_counter(), time.process_time()
    best = running.fit(module, settings, monitor="valid_f1")
    minutes = [(now - then) / 60 for now, then in zip((time.perf_counter(), time.process_time()), began, strict=True)]
    state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
    saved = SavedTagger(module.network, lexicon, words, settings.context)
    return {"training_minutes": minutes[0], "training_cpu_minutes": minutes[1], **finish(saved, settings)}


def finish(saved: SavedTagger, settings: Settings) -> dict[str, Any]:
    """Save the network, tag valid and test with it, write both reports."""
    rank, _ = running.world()
    if rank:
        return {}
    saved.save(settings.out / "network", overwrite=True)
    results = {"settings": {name: str(value) for name, value in vars(settings).items()}}
    for name in ("valid", "test"):
        path = getattr(settings, name)
        if path:
            results[name] = evaluate(saved, path, settings.strict)
    return results


def evaluate(saved: SavedTagger, path: Path, strict: bool = False) -> dict[str, Any]:
    """Both reports on a tagged file, what was left out of it, and the speed."""
    part = conll.read(path, strict)
    began = time.perf_counter()
    found = saved.tag([s.words for s in part.sentences], [s.document for s in part.sentences])
    seconds = time.perf_counter() - began
    report = token_reports.measure([s.tags for s in part.sentences], found)
    return {**report, "f1": report["entities"]["micro avg"]["f1-score"], "skipped": part.skipped,
            "sentences_per_s": len(found) / seconds}


if __name__ == "__main__":
    print(json.dumps(main(running.parse(Settings)), indent=1))
