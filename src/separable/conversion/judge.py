"""Accuracy on labelled examples that no layer is fitted on: for budgets of accuracy."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion.batches import BATCH_EXAMPLES, Data, describe, first_of
from separable.errors import InputError
from separable.inputs import own_copy

_SHARE = 4  # one part of so many is judged on, where all examples could be fitted on


class Judge:
    """The labelled examples of `data` beyond those that are fitted on; of fewer, the last quarter."""

    def __init__(self, data: Iterable[Any], samples: int):
        inputs, labels = _labelled(data)
        if inputs is None or len(labels) < _SHARE:
            rule = "needs batches of (inputs, labels), labels whole numbers, for a budget of accuracy"
            raise InputError("data", describe(data), rule)
        self.fitted = samples if len(labels) > samples else len(labels) - max(1, len(labels) // _SHARE)
        self.inputs, self.labels = inputs[self.fitted :], labels[self.fitted :]

    @torch.inference_mode()
    def accuracy(self, network: nn.Module) -> float:
        """Share of the examples whose label the network gives, from 0 to 1; they need logits [N, classes, ...]."""
        right = 0.0
        for x, y in zip(self.inputs.split(BATCH_EXAMPLES), self.labels.split(BATCH_EXAMPLES), strict=True):
            given = network(own_copy(x))
            if not isinstance(given, Tensor) or given.dim() < 2 or given[:, 0].shape != y.shape:
                rule = "gives no class logits [N, classes, ...] for its labels, so a budget of accuracy says nothing"
                raise InputError("model", type(network).__name__, rule)
            right += float((given.argmax(1) == y).double().reshape(len(y), -1).mean(1).sum())  # of a map, its share
        return right / len(self.labels)


def _labelled(data: Data) -> tuple[Tensor | None, Tensor]:
    inputs, labels = [], []
    for batch in [] if isinstance(data, Tensor) else data:
        if not (isinstance(batch, (tuple, list)) and len(batch) > 1 and isinstance(batch[1], Tensor)):
            return None, torch.empty(0)
        if batch[1].is_floating_point() or batch[1].is_complex():
            return None, torch.empty(0)
        inputs.append(first_of(batch))
        labels.append(batch[1])
    if not inputs:
        return None, torch.empty(0)
    return torch.cat(inputs), torch.cat(labels)
