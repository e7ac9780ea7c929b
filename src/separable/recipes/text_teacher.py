"""Teachers of sentences: a saved classifier, or a pretrained encoder, frozen, under a linear classifier fitted here.

What the latter says of a training sentence comes from a fit without it (five parts in turn), so that it also tells the
student which sentences are hard. The penalty of the weights is chosen on the first of the parts.
Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531; Wolpert 1992, "Stacked Generalization" (the parts).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.data.sentences import Corpus
from separable.errors import InputError
from separable.models.saved_classifier import SavedClassifier
from separable.models.sentence_encoder import PACKAGED, SentenceEncoder
from separable.progress import track

PARTS = 5
STRENGTHS = (3.0, 10.0, 30.0, 100.0)  # 1 / (penalty of the weights times sentences), as C in scikit-learn
STEPS = 60  # of L-BFGS


class Teacher(Protocol):
    """`of_training`: what it says of the training sentences, [N, K] probabilities in the order of their classes."""

    of_training: Tensor

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """[N, K] of other sentences."""
        ...


def open_teacher(train: Corpus, place: Path) -> Teacher:
    """The teacher that `place` names, "minilm" or the folder of a saved classifier, for this training set.

    Raises:
        InputError: there is none, the encoder's package is not installed, or the classifier knows other classes.
    """
    if str(place) == PACKAGED:
        return EncoderTeacher(train, SentenceEncoder.load().vectors)
    saved = SavedClassifier.load(place)
    if saved.network.shape.classes != train.classes():
        raise InputError("teacher", str(place), "knows other classes than the training set has")
    return SavedTeacher(train, saved)


class SavedTeacher:
    """A classifier that this recipe saved."""

    def __init__(self, train: Corpus, saved: SavedClassifier):
        self.saved = saved
        self.of_training = self.probabilities(train.texts)

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        return self.saved.run(texts).logits.softmax(1)


class EncoderTeacher:
    """A linear classifier over vectors of sentences; `encode` makes them, [N, size] of N texts."""

    def __init__(self, train: Corpus, encode: Callable[[Sequence[str]], Tensor]):
        self.encode, classes = encode, train.classes()
        x = encode(train.texts)  # [N, size]
        y = torch.tensor([classes.index(label) for label in train.labels])
        part = _parts(y)
        self.of_training = torch.zeros(len(y), len(classes))

        def without(number: int, strength: float) -> Tensor:
            weights = _fitted(x[part != number], y[part != number], len(classes), strength)
            return _probabilities(x[part == number], weights)

        tried = {strength: without(0, strength) for strength in track(STRENGTHS, "teacher, first part")}
        truth = y[part == 0]
        strength = min(STRENGTHS, key=lambda s: float(F.nll_loss(tried[s].clamp_min(1e-9).log(), truth)))
        self.strength, self.of_training[part == 0] = strength, tried[strength]
        for number in track(range(1, PARTS), "teacher, other parts"):
            self.of_training[part == number] = without(number, strength)
        self.weights = _fitted(x, y, len(classes), strength)

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """By the fit on all of the training set."""
        return _probabilities(self.encode(texts), self.weights)


def _parts(labels: Tensor) -> Tensor:
    """The part of each sentence [N]: sentences of a class are dealt out in turn, in drawn order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels[order].argsort(stable=True)]
    return torch.empty_like(labels).index_copy(0, order, torch.arange(len(labels)) % PARTS)


@torch.enable_grad()
def _fitted(x: Tensor, y: Tensor, classes: int, strength: float) -> Tensor:
    """Logistic regression: weights [K, size + 1], the last column the bias, which is not penalised."""
    weights = torch.zeros(classes, x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weights[:, :-1], weights[:, -1]), y)
        value = value + weights[:, :-1].square().sum() / (2 * strength * len(x))
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def _probabilities(x: Tensor, weights: Tensor) -> Tensor:
    return F.linear(x, weights[:, :-1], weights[:, -1]).softmax(1)
