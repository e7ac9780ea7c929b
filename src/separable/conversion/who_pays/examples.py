"""What people pass as data, as inputs of any number with labels and names, an example at a time where it must be."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion.batches import BATCH_EXAMPLES, describe, halves
from separable.errors import InputError
from separable.inputs import Inputs

_LAYOUT = (
    "each batch must be a tensor [N, ...], (inputs, labels) or (inputs, labels, files); several inputs are a tuple"
)


@dataclass
class Batch:
    """Some examples. labels: as they were given; files: a name for each. Either may be missing."""

    inputs: Inputs
    labels: Tensor | None
    files: list[str] | None

    def class_labels(self) -> Tensor | None:
        """Class numbers [N], negative where there is none; None where labels are of another kind, or all missing."""
        labels = self.labels
        if labels is None or labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
            return None
        return labels.long() if bool((labels >= 0).any()) else None

    def only(self, kept: Tensor) -> "Batch":
        """The examples for which `kept` [N] is true."""
        files = None if self.files is None else [file for file, keep in zip(self.files, kept, strict=True) if keep]
        inputs = self.inputs.map(lambda tensor: tensor[kept.to(tensor.device)])
        return Batch(inputs, None if self.labels is None else self.labels[kept.to(self.labels.device)], files)


def batches(data: Any) -> Iterator[Batch]:
    """The batches of `data`, at most 64 examples each.

    Raises:
        InputError: something that is no batch, labels or files that are not as many as the inputs, no example at all.
    """
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise InputError("data", describe(data), f"must be a tensor or an iterable of batches; {_LAYOUT}")
    found = False
    for given in [data] if isinstance(data, Tensor) else data:
        whole = _read(given)
        for start in range(0, len(whole.inputs), BATCH_EXAMPLES):
            found = True
            yield _part(whole, slice(start, start + BATCH_EXAMPLES))
    if not found:
        raise InputError("data", describe(data), "holds no examples")


def fitting(network: nn.Module, inputs: Inputs) -> Inputs:
    """`inputs` on the device and in the floating type of the network's parameters."""
    place = next((p for p in network.parameters() if p.is_floating_point()), None)
    return inputs if place is None else inputs.to(place)


def _read(given: Any) -> Batch:
    files = None
    if isinstance(given, (tuple, list)):
        if not 1 <= len(given) <= 3:
            raise InputError("data", f"a {type(given).__name__} of {len(given)}", _LAYOUT)
        files = given[2] if len(given) > 2 else None
    return _checked(*halves(given), files)


def _checked(inputs: Inputs, labels: Any, files: Any) -> Batch:
    examples = len(inputs.checked("data", f"holds no inputs; {_LAYOUT}"))
    if not inputs.are_finite():
        raise InputError("data", str(inputs), "holds NaN or infinite values")
    if labels is not None:
        labels = torch.as_tensor(labels)
        if labels.dim() == 0 or len(labels) != examples:
            raise InputError("data", f"labels, a {describe(labels)}", f"must be as many as the inputs, {examples}")
    if files is not None and (isinstance(files, (str, Tensor)) or len(files) != examples):
        raise InputError("data", describe(files), f"the third of a batch must be {examples} names, one an example")
    return Batch(inputs, labels, None if files is None else [str(file) for file in files])


def _part(batch: Batch, part: slice) -> Batch:
    labels = None if batch.labels is None else batch.labels[part]
    files = None if batch.files is None else batch.files[part]
    return Batch(batch.inputs[part], labels, files)
