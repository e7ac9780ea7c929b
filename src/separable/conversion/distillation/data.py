"""What `distill` reads: batches of one or several inputs, with labels, without, or both mixed; each process its share.

What a batch is says batches.py. Labels are a tensor of class numbers, negative where there is none, or a dict of such
by the name of the output that they belong to; anything else in their place is not read.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from separable.conversion.batches import BATCH_EXAMPLES, LAYOUT, describe, halves
from separable.errors import InputError
from separable.inputs import Inputs, mapped

_PLANES_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass
class Batch:
    """One batch, ready for the networks, and labels where there are any."""

    inputs: Inputs
    labels: Any

    @property
    def examples(self) -> int:
        return len(self.inputs)

    def rows(self, first: int, last: int) -> "Batch":
        """The part of it from one example to another."""
        return Batch(self.inputs[first:last], mapped(self.labels, lambda tensor: tensor[first:last]))

    @property
    def example_values(self) -> int:
        """Numbers in the inputs of one example."""
        return sum(tensor.numel() for tensor in self.inputs.tensors()) // max(1, self.examples)


def read(batch: Any, source: str, device: torch.device, dtype: torch.dtype, share: tuple[int, int] = (0, 1)) -> Batch:
    """The part of `batch` that is this process's, rank and number of processes being `share`.

    Floating-point inputs take the network's dtype, and maps lie channels last, which trains twice as fast on CPUs.
    """
    inputs, labels = halves(batch)
    examples = len(inputs.checked(source, LAYOUT))
    rank, processes = share
    mine = slice(rank, None, processes) if examples >= processes else slice(None)

    def prepared(value: Tensor) -> Tensor:
        value = value[mine].to(device, dtype if value.is_floating_point() else None)
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(source, describe(value), "holds NaN or infinite values")
        if value.is_floating_point() and value.dim() in _PLANES_LAST:
            value = value.contiguous(memory_format=_PLANES_LAST[value.dim()])
        return value

    if isinstance(labels, Mapping):
        labels = {name: value[mine].to(device) for name, value in labels.items() if isinstance(value, Tensor)}
    else:
        labels = labels[mine].to(device) if isinstance(labels, Tensor) else None
    return Batch(inputs.map(prepared), labels)


class Source:
    """`data` under the name of its argument, to be walked once an epoch."""

    def __init__(self, data: Any, name: str):
        if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
            raise InputError(name, describe(data), "must be a tensor [N, ...] or an iterable of batches")
        self.name = name
        once = not isinstance(data, Tensor) and iter(data) is data
        self.data: Any = list(data) if once else data
        if isinstance(data, Tensor) and not len(data):
            raise InputError(name, describe(data), "holds no examples")
        self.batches = _count(self.data)

    @property
    def is_shared_out(self) -> bool:
        """Whether each process is given other examples already, by torch's own sampler."""
        return isinstance(getattr(self.data, "sampler", None), DistributedSampler)

    def epoch(self, number: int | None = None) -> Iterator[Any]:
        """The batches of one epoch; a tensor is cut here, and shuffled where the epoch has a number."""
        if self.is_shared_out and number is not None:
            self.data.sampler.set_epoch(number)
        if not isinstance(self.data, Tensor):
            yield from self.data
            return
        order = torch.arange(len(self.data)) if number is None else torch.randperm(len(self.data))
        for part in order.tensor_split(self.batches):  # even parts, so that no batch norm meets a single example
            yield self.data[part.to(self.data.device)]

    def first(self, batches: int) -> list[Any]:
        """The first batches, of a tensor some spread over the whole; torch's random numbers stay as they are."""
        with torch.random.fork_rng(devices=[]):
            if isinstance(self.data, Tensor):
                spread = torch.linspace(0, len(self.data) - 1, min(len(self.data), batches * BATCH_EXAMPLES)).long()
                return list(self.data[spread.to(self.data.device)].split(BATCH_EXAMPLES))
            return list(itertools.islice(self.data, batches))

    def has_labels(self) -> bool | None:
        """None where only a walk over the data would tell."""
        if isinstance(self.data, Tensor):
            return False
        if isinstance(self.data, (list, tuple)):
            return any(_is_labelled(halves(batch)[1]) for batch in self.data)
        return None


def _is_labelled(labels: Any) -> bool:
    values = labels.values() if isinstance(labels, Mapping) else [labels]
    return any(isinstance(value, Tensor) and bool((value >= 0).any()) for value in values)


def _count(data: Any) -> int:
    if isinstance(data, Tensor):
        return math.ceil(len(data) / BATCH_EXAMPLES)
    return len(data) if hasattr(data, "__len__") else sum(1 for _ in data)
