"""The look at both networks before the first step, on some examples: what to match, and the scale of everything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from separable.conversion.batches import describe
from separable.conversion.distillation import features as features
from separable.conversion.distillation import steps as steps
from separable.conversion.distillation.data import Batch, Source
from separable.conversion.distillation.loss import Objective
from separable.conversion.distillation.networks import Pair
from separable.errors import InputError

_BATCHES, _EXAMPLES = 4, 64  # at most
_VALUES = 1 << 19  # of inputs run at once


@dataclass
class Look:
    """What was seen. A checkpoint keeps it, for a loader may give other examples first the next time."""

    objective: Objective
    features: features.Features
    scales: dict[str, float]  # of each parameter that is trained
    size: float  # of the loss of outputs: what `Objective.size` gives

    def state(self) -> dict[str, Any]:
        rules = self.objective.rules.items()
        outputs = {name: rule.variance for name, rule in rules if rule.variance is not None}
        return {"scales": self.scales, "size": self.size, "outputs": outputs, "features": self.features.variance}

    def take_up(self, state: dict[str, Any], pair: Pair) -> None:
        """Go on with what another run, or the first of several processes, saw."""
        self.scales, self.size = state["scales"], state["size"]
        for name, variance in state["outputs"].items():
            self.objective.rules[name].variance = variance
        self.features = features.Features(list(state["features"]), pair.twin, pair.teacher)
        self.features.variance = state["features"]


@torch.no_grad()
def look(
    pair: Pair, train: Source, validation: Source | None, objective: Objective, asked: bool | Sequence[str]
) -> Look:
    """Run both networks; give each output its rule, choose the modules to match, measure variances and scales.

    asked: the argument `features` of `distill`.
    """
    batches = _first(train, pair)
    matched, only_alike = _matched(pair, batches[0].rows(0, 1), asked), asked is True
    spread, targets = steps.Spread(pair.student), []
    with matched.open(), spread.open():
        for batch in batches:
            targets.append(pair.teach(batch, "train"))
            pair.give(pair.student, batch, "train")
            matched.look()
    matched.settle(only_alike)
    labels = [batch.labels for batch in batches]
    if validation is not None:
        labels += [batch.labels for batch in _first(validation, pair)]
    objective.look(targets, labels)
    return Look(objective, matched, steps.scales(pair.student, spread), objective.size(targets))


def _matched(pair: Pair, one: Batch, asked: bool | Sequence[str]) -> features.Features:
    """The modules whose outputs may be matched, from a run on one example."""
    pair.student.eval()
    ours, theirs = (features.Watch(network, keep=features.shape_of) for network in (pair.student, pair.teacher))
    names: list[str] = []
    if asked:
        with theirs.open(), ours.open():
            pair.teach(one, "train")
            pair.give(pair.student, one, "train")
        if asked is True:
            names = features.choose(pair.student, pair.teacher, ours, theirs)
        else:
            names = features.check(asked, pair.student, pair.teacher, ours, theirs)
    return features.Features(names, pair.student, pair.teacher)


def _first(source: Source, pair: Pair) -> list[Batch]:
    """Some examples from the beginning, in pieces so small that what both networks give inside fits into memory."""
    found: list[Batch] = []
    left = _EXAMPLES
    for raw in source.first(_BATCHES):
        batch = pair.read(raw, source)
        size = max(1, min(_EXAMPLES, _VALUES // max(1, batch.example_values)))
        for start in range(0, min(left, batch.examples), size):
            found.append(batch.rows(start, min(start + size, left)))
        left -= min(left, batch.examples)
    if not found:
        raise InputError(source.name, describe(source.data), "holds no examples")
    return found
