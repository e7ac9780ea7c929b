"""The row that a network has to beat: TF-IDF of words and character n-grams under a linear SVM (scikit-learn).

English words and marks in n-grams of 1 and 2 beside characters inside words in n-grams of 2 to 5; for text with many
ideographs, characters in n-grams of 1 to 3. All classes matter equally, which gains 0.01 of held-out macro F1. Margins
become probabilities by a softmax with one scale, fitted on training sentences held out, so that they can be averaged
with a network's.
Source: Joachims 1998, "Text Categorization with Support Vector Machines"; Guo et al. 2017, arXiv:1706.04599 (scale).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.data import positions

_WORD = r"(?u)\b\w+\b|[^\w\s]"
SCALE_FROM = 4000  # sentences that the scale is fitted with, at most; the SVM itself is fitted with all
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


class Rival:
    """Fitted on texts and labels; `probabilities` for others. `scale` is what margins are multiplied by."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]):
        self.pipeline = _pipeline(texts).fit(list(texts), list(labels))
        classes = list(self.pipeline.classes_)
        train, held = _part(labels)
        part = _pipeline(texts).fit([texts[i] for i in train], [labels[i] for i in train])
        margins = _margins(part, [texts[i] for i in held], classes)
        truth = torch.tensor([classes.index(labels[i]) for i in held])
        self.scale = min(SCALES, key=lambda scale: float(F.cross_entropy(scale * margins, truth)))

    def probabilities(self, texts: Sequence[str], classes: Sequence[str]) -> Tensor:
        """[N, K], in the order of `classes`."""
        return (self.scale * _margins(self.pipeline, texts, classes)).softmax(1)


def _part(labels: Sequence[str]) -> tuple[list[int], list[int]]:
    """Numbers of at most SCALE_FROM sentences to fit with, of every class, and of a quarter as many to judge by."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    seen: Counter[str] = Counter()
    train: list[int] = []
    held: list[int] = []
    for n in order[: SCALE_FROM + SCALE_FROM // 4]:
        seen[labels[n]] += 1
        (train if seen[labels[n]] % 5 else held).append(n)
    return train, held or train


def _margins(pipeline: Any, texts: Sequence[str], classes: Sequence[str]) -> Tensor:
    """[N, K] in the order of `classes`; -1 for a class that was not fitted."""
    found = torch.as_tensor(pipeline.decision_function(list(texts))).float()
    if found.dim() == 1:  # two classes: one margin
        found = torch.stack([-found, found], 1)
    margins = found.new_full((len(found), len(classes)), -1.0)
    places = {label: place for place, label in enumerate(pipeline.classes_)}
    for column, label in enumerate(classes):
        if label in places:
            margins[:, column] = found[:, places[label]]
    return margins


def _pipeline(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    sample = "".join(list(texts)[:1000])
    ideographs = sum(positions.is_ideograph(character) for character in sample)
    machine = LinearSVC(C=1.0, class_weight="balanced")
    if ideographs > len(sample) / 3:
        return make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True), machine)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    return make_pipeline(make_union(words, characters), machine)
