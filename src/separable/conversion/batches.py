"""What people pass as data, brought into one form: a list of input tensors on the model's device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from separable.errors import InputError

Data = Tensor | Iterable[Any]

BATCH_EXAMPLES, BATCH_NUMBERS = 64, 1 << 20  # of a batch at most: they bound what one pass keeps in memory


def collect(data: Data, model: nn.Module, samples: int | None = None) -> list[Tensor]:
    """At most `samples` examples of `data`, in batches of at most 64 and fewer large ones, ready for `model`.

    data: a tensor [N, ...] or an iterable of batches, each a tensor or (inputs, ...); what follows the inputs is not
    read. They are kept in memory, for every layer is fitted in a pass of its own.

    Raises:
        InputError: no examples, or something that is not a tensor.
    """
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise InputError("samples", samples, "must be a whole number of at least 1")
    place = next(model.parameters(), torch.empty(0))
    taken: list[Tensor] = []
    left = samples
    for batch in [data] if isinstance(data, Tensor) else _iterate(data):
        inputs = first_of(batch)[:left]
        dtype = place.dtype if inputs.is_floating_point() else None
        together = min(max(1, BATCH_NUMBERS // max(1, inputs[:1].numel())), BATCH_EXAMPLES)
        taken += [b.to(place.device, dtype) for b in inputs.detach().split(together) if len(b)]
        left = None if left is None else left - len(inputs)
        if left == 0:
            break
    if not taken:
        raise InputError("data", describe(data), "holds no examples; at least one is needed, some hundreds are good")
    return taken


def first_of(batch: Any) -> Tensor:
    """The inputs of a batch: the batch itself, or the first of (inputs, labels, ...)."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(inputs, Tensor) or inputs.dim() == 0:
        raise InputError("data", describe(batch), "each batch must be a tensor [N, ...] or (inputs, labels)")
    if inputs.is_meta:
        raise InputError("data", describe(inputs), "is on the meta device and has no values")
    return inputs


def check_values(name: str, model: Any) -> None:
    """A module whose tensors hold values."""
    if not isinstance(model, nn.Module):
        raise InputError(name, type(model).__name__, "must be a torch.nn.Module")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise InputError(name, type(model).__name__, "is on the meta device and has no values; load its weights first")


def describe(value: Any) -> str:
    return f"tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _iterate(data: Any) -> Iterable[Any]:
    if isinstance(data, (str, bytes, dict)) or not isinstance(data, Iterable):
        raise InputError("data", describe(data), "must be a tensor [N, ...] or an iterable of batches")
    return data
