"""A trained sentence classifier as a folder (see word_folder), and classifying with it.

How known a sentence looks is its largest logit plus NEAREST times its largest cosine to a training sentence, each in
standard deviations over known sentences; below the threshold, it belongs to no class.
Source: Hendrycks et al. 2019, arXiv:1911.11132 (largest logit); Sun et al. 2022, arXiv:2204.06507 (nearest neighbours).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.data.sentence_rows import SentenceRows, SentenceTable
from separable.data.words import Lexicon
from separable.models import word_folder
from separable.models.sentence_classifier import SentenceClassifier, Shape
from separable.progress import track

TASK = "text"
NEIGHBOURS = 20_000  # training sentences kept at most
NEAREST = 0.25  # weight of the cosine beside the logit, in standard deviations of both; by CLINC150's validation set


@dataclass
class Known:
    """What known sentences look like: spreads of the two scores over them, and the least that still counts as known."""

    logit_spread: float = 1.0
    cosine_spread: float = 1.0
    threshold: float = float("-inf")


@dataclass
class Found:
    """Of N sentences: logits [N, K], and how known each looks [N]."""

    logits: Tensor
    known: Tensor


class SavedClassifier:
    """A network with all that it needs to read text: call `classify` with sentences."""

    def __init__(self, network: SentenceClassifier, table: SentenceTable, neighbours: Tensor, known: Known):
        self.network, self.table, self.known = network.eval(), table, known
        self.neighbours = neighbours  # [T, width], of length 1

    @classmethod
    def of(
        cls, network: SentenceClassifier, train: SentenceRows, valid: SentenceRows | None, kept: float = 0.95
    ) -> "SavedClassifier":
        """Learn what known sentences look like: neighbours from training, spreads and threshold from validation.

        `kept` is the share of validation sentences that the threshold lets through; without any, it lets all through.
        """
        saved = cls(network, train.table, torch.zeros(0, network.shape.width), Known())
        step = -(-len(train) // NEIGHBOURS)
        _, found = saved._run(train)
        saved.neighbours = F.normalize(found[::step], dim=1).half().float()  # as they will be saved
        if valid is not None and len(valid) > 1:
            logits, vector = saved._run(valid)
            logit, cosine = logits.amax(1), saved._nearest(vector)
            saved.known = Known(max(float(logit.std()), 1e-6), max(float(cosine.std()), 1e-6))
            saved.known.threshold = float(saved._score(logits, vector).quantile(1 - kept))
        return saved

    def run(self, texts: Sequence[str]) -> Found:
        """Logits and how known each text looks; an empty text gets zeros, and looks unknown."""
        logits, vector = self._run(SentenceRows(texts, [-1] * len(texts), self.table))
        known = self._score(logits, vector)
        empty = torch.tensor([not text.strip() for text in texts], dtype=torch.bool)
        return Found(logits.masked_fill(empty[:, None], 0.0), known.masked_fill(empty, float("-inf")))

    def classify(self, texts: Sequence[str]) -> list[tuple[str | None, float]]:
        """The label of each text and its probability; None in place of the label where it looks like no class."""
        found = self.run(texts)
        share, which = found.logits.softmax(1).max(1)
        known = (found.known > -torch.inf) & (found.known >= self.known.threshold)
        return [
            (self.network.shape.classes[w] if k else None, p)
            for w, k, p in zip(which.tolist(), known.tolist(), share.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def _run(self, rows: SentenceRows) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and vectors [N, width]."""
        shape = self.network.shape
        logits, vector = torch.zeros(len(rows), len(shape.classes)), torch.zeros(len(rows), shape.width)
        for numbers in track(rows.groups(256), "classifying"):
            logits[numbers], _, vector[numbers] = self.network(rows.batch(numbers))
        return logits, vector

    def _nearest(self, vector: Tensor) -> Tensor:
        if not len(self.neighbours):
            return torch.zeros(len(vector))
        parts = F.normalize(vector, dim=1).split(1024)
        return torch.cat([(part @ self.neighbours.T).amax(1) for part in parts]) if parts else torch.zeros(0)

    def _score(self, logits: Tensor, vector: Tensor) -> Tensor:
        logit, cosine = logits.amax(1) / self.known.logit_spread, self._nearest(vector) / self.known.cosine_spread
        return logit + NEAREST * cosine

    def save(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write the folder, whole or not at all."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        state |= {"rarity": self.table.rarity, "neighbours": self.neighbours.half()}
        about = {"shape": asdict(self.network.shape), "lexicon": asdict(self.table.lexicon)}
        about["known"] = asdict(self.known) | {"threshold": max(self.known.threshold, -1e9)}  # JSON has no infinity
        word_folder.write(folder, TASK, about, state, self.table.vectors, overwrite)

    @classmethod
    def load(cls, folder: Path | str) -> "SavedClassifier":
        """Read what `save` wrote.

        Raises:
            InputError: the folder is not a saved classifier, or its parts do not fit each other.
        """
        with word_folder.reading(folder, TASK) as found:
            about, state, prefix = found.about, found.state, "network."
            network = SentenceClassifier(Shape(**about["shape"]))
            network.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
            lexicon, rarity = Lexicon(**about["lexicon"]), state["rarity"].tolist()
            table = SentenceTable(lexicon, found.words, rarity, network.shape.piece_buckets)
            return cls(network, table, state["neighbours"].float(), Known(**about["known"]))
