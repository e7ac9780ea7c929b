"""Accuracy on labelled examples that no layer is fitted on: for budgets of accuracy."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion.batches import BATCH_EXAMPLES, Data, check_samples, describe, first_of, halves, run
from separable.errors import InputError
from separable.inputs import Inputs

_SHARE = 4  # one part of so many is judged on, where all examples could be fitted on


class Judge:
    """The labelled examples of `data` beyond those that are fitted on; of fewer, the last quarter."""

    def __init__(self, data: Iterable[Any], samples: int):
        check_samples(samples)
        batches = _labelled(data)
        examples = sum(len(labels) for _, labels in batches)
        if not batches:
            rule = "needs batches of (inputs, labels), labels whole numbers, for a budget of accuracy"
            raise InputError("data", describe(data), rule)
        if examples < _SHARE:
            many = f"{examples} labelled {'example' if examples == 1 else 'examples'}"
            rule = f"has {many}; a budget of accuracy needs at least {_SHARE}"
            raise InputError("data", describe(data), rule)
        self.fitted = samples if examples > samples else examples - max(1, examples // _SHARE)
        self.held: list[tuple[Inputs, Tensor]] = []
        before = 0
        for inputs, labels in batches:
            first = max(0, self.fitted - before)
            before += len(labels)
            for i in range(first, len(labels), BATCH_EXAMPLES):
                self.held.append((inputs[i : i + BATCH_EXAMPLES], labels[i : i + BATCH_EXAMPLES]))

    @torch.inference_mode()
    def accuracy(self, network: nn.Module) -> float:
        """Share of the examples whose label the network gives, from 0 to 1; they need logits [N, classes, ...]."""
        right, place = 0.0, next(network.parameters(), torch.empty(0))
        for inputs, y in self.held:
            given = run(network, inputs.to(place))
            if not isinstance(given, Tensor) or given.dim() < 2 or given[:, 0].shape != y.shape:
                rule = "gives no class logits [N, classes, ...] for its labels, so a budget of accuracy says nothing"
                raise InputError("model", type(network).__name__, rule)
            hits = given.argmax(1) == y.to(place.device)
            right += float(hits.double().reshape(len(y), -1).mean(1).sum())  # of a map, its share
        return right / sum(len(labels) for _, labels in self.held)


def _labelled(data: Data) -> list[tuple[Inputs, Tensor]]:
    """The batches with their labels; none where any has no class numbers."""
    found = []
    if isinstance(data, (Tensor, str, bytes, Mapping)) or not isinstance(data, Iterable):
        return []
    for batch in data:
        labels = halves(batch)[1]
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
            return []
        inputs = first_of(batch)
        if labels.dim() == 0 or len(labels) != len(inputs):
            raise InputError("data", f"labels, a {describe(labels)}", f"must be as many as the inputs, {len(inputs)}")
        found.append((inputs, labels))
    return found
