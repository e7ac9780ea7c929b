"""What people pass as data, brought into one form: batches of inputs on the model's device.

A batch is (inputs, labels) or the inputs alone. Inputs are a tensor [N, ...], a tuple or list of what the network takes
by position, or a dict of what it takes by name. Several inputs without labels are written ((a, b),): a plain pair is
inputs and labels. In a dict that is a whole batch, as loaders of language models give it, `labels` are the labels; of
({...}, None) the network takes all.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from separable.errors import InputError, first_line
from separable.inputs import Inputs

Data = Tensor | Iterable[Any]

LABELS = "labels"  # their name in a batch that is a dict
LAYOUT = "each batch must be inputs or (inputs, labels); inputs are a tensor [N, ...], or a tuple or dict of them"
BATCH_EXAMPLES, BATCH_NUMBERS = 64, 1 << 20  # of a batch at most: they bound what one pass keeps in memory


MISFITS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)  # on what is not expected


def collect(data: Data, model: nn.Module, samples: int | None = None) -> list[Inputs]:
    """At most `samples` examples of `data`, in batches of at most 64 and fewer large ones, ready for `model`.

    data: a tensor [N, ...] or an iterable of batches; what follows the inputs of a batch is not read. They are kept in
    memory, for every layer is fitted in a pass of its own.

    Raises:
        InputError: no examples, something that holds no tensors, or inputs of different numbers of examples.
    """
    if samples is not None:
        check_samples(samples)
    place = next(model.parameters(), torch.empty(0))
    taken: list[Inputs] = []
    left = samples
    for batch in [data] if isinstance(data, Tensor) else _iterate(data):
        inputs = first_of(batch)[:left].map(torch.Tensor.detach).to(place)
        numbers = sum(tensor[:1].numel() for tensor in inputs.tensors())
        together = min(max(1, BATCH_NUMBERS // max(1, numbers)), BATCH_EXAMPLES)
        taken += [inputs[i : i + together] for i in range(0, len(inputs), together)]
        left = None if left is None else left - len(inputs)
        if left == 0:
            break
    if not taken:
        raise InputError("data", describe(data), "holds no examples; at least one is needed, some hundreds are good")
    return taken


def check_samples(samples: Any) -> None:
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError("samples", samples, "must be a whole number of at least 1")


def example_of(example: Any, model: nn.Module) -> Inputs:
    """The inputs that a network is counted and timed on, ready for `model`."""
    rule = "must be a tensor [N, ...], or a tuple or dict of them"
    inputs = Inputs.of(example).checked("example", rule)
    if not len(inputs):
        raise InputError("example", str(inputs), "holds no examples")
    return inputs.map(torch.Tensor.detach).to(next(model.parameters(), torch.empty(0)))


def halves(batch: Any) -> tuple[Inputs, Any]:
    """The inputs of a batch, not looked at yet, and what stands in the labels' place, if anything."""
    if isinstance(batch, (tuple, list)) and batch:
        return Inputs.of(batch[0]), batch[1] if len(batch) > 1 else None
    if isinstance(batch, Mapping):
        return Inputs.of({name: value for name, value in batch.items() if name != LABELS}), batch.get(LABELS)
    return Inputs.of(batch), None


def first_of(batch: Any) -> Inputs:
    """The inputs of a batch, once they are known to be what they should be."""
    return halves(batch)[0].checked("data", LAYOUT)


def run(network: nn.Module, inputs: Inputs, argument: str = "data", who: str = "the model") -> Any:
    """What the network gives for its own copy of the inputs; what it cannot read is told as the caller's mistake."""
    try:
        return inputs.call(network)
    except InputError:
        raise
    except MISFITS as error:
        raise InputError(argument, str(inputs), f"{who} cannot read it: {first_line(error)}") from error


def check_values(name: str, model: Any) -> None:
    """A module whose tensors hold values."""
    if not isinstance(model, nn.Module):
        raise InputError(name, type(model).__name__, "must be a torch.nn.Module")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise InputError(name, type(model).__name__, "is on the meta device and has no values; load its weights first")


def describe(value: Any) -> str:
    return f"tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _iterate(data: Any) -> Iterable[Any]:
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise InputError("data", describe(data), "must be a tensor [N, ...] or an iterable of batches")
    return data
