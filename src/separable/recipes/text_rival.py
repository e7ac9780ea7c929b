"""The row that a network has to beat: TF-IDF of words and character n-grams under a linear SVM (scikit-learn).

English words and marks in n-grams of 1 and 2 beside characters inside words in n-grams of 2 to 5; for text with many
ideographs, characters in n-grams of 1 to 3. Margins become probabilities by a softmax with one scale, fitted on a fifth
of the training sentences held out, so that they can be averaged with a network's.
Source: Joachims 1998, "Text Categorization with Support Vector Machines"; Guo et al. 2017, arXiv:1706.04599 (scale).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.data import positions

_WORD = r"(?u)\b\w+\b|[^\w\s]"
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


class Rival:
    """Fitted on texts and labels; `probabilities` for others. `scale` is what margins are multiplied by."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]):
        from sklearn.model_selection import StratifiedKFold
        from sklearn.utils.multiclass import check_classification_targets

        check_classification_targets(list(labels))
        self.classes = sorted(set(labels))
        places = torch.tensor([self.classes.index(label) for label in labels])
        train, held = next(StratifiedKFold(5, shuffle=True, random_state=0).split(list(texts), list(labels)))
        part = _pipeline(texts).fit([texts[i] for i in train], [labels[i] for i in train])
        margins = self._margins(part, [texts[i] for i in held], list(part.classes_))
        truth = places[torch.tensor(held)]
        self.scale = min(SCALES, key=lambda scale: float(F.cross_entropy(scale * margins, truth)))
        self.pipeline = _pipeline(texts).fit(list(texts), list(labels))

    def probabilities(self, texts: Sequence[str], classes: Sequence[str]) -> Tensor:
        """[N, K], in the order of `classes`."""
        margins = self._margins(self.pipeline, texts, list(classes))
        return (self.scale * margins).softmax(1)

    def _margins(self, pipeline, texts: Sequence[str], classes: Sequence[str]) -> Tensor:
        margins = torch.as_tensor(pipeline.decision_function(list(texts))).float()
        if margins.dim() == 1:  # two classes: one margin
            margins = torch.stack([-margins, margins], 1)
        fitted = list(pipeline.classes_)
        return margins[:, torch.tensor([fitted.index(label) for label in classes])]


def _pipeline(texts: Sequence[str]):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    sample = "".join(list(texts)[:1000])
    ideographs = sum(positions.is_ideograph(character) for character in sample)
    if ideographs > len(sample) / 3:
        return make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True), LinearSVC(C=1.0))
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    return make_pipeline(make_union(words, characters), LinearSVC(C=0.5))
