"""Name the layers whose numbers are subnormal: below the smallest normal one (1e-38), so that processors are slow.

Many processors compute with them in microcode, which takes 50 to 100 times as long. Trained weights hold some where
weight decay is all that moves them, and so do activations behind them. Numbers are told apart by their
bits, for arithmetic and comparisons take subnormal ones for zeros where `torch.set_flush_denormal(True)` is in force.
float16 is left out: torch computes with it in float32, where its smallest numbers are normal.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from separable.cost.trace import ModuleStack
from separable.inputs import Example, Inputs

ADVICE = (
    "Some processors, Intel's among them, take up to a hundred times as long for numbers below 1e-38. "
    "torch.set_flush_denormal(True) at the start of a process, or separable.accelerate, takes them for zeros."
)
_LAYOUTS = {  # integers of the same size, the largest of them, bits of the fraction
    torch.float32: (torch.int32, (1 << 31) - 1, 23),
    torch.float64: (torch.int64, (1 << 63) - 1, 52),
    torch.bfloat16: (torch.int16, (1 << 15) - 1, 7),
}
_PART = 1 << 18  # numbers looked at together, which stay in the caches
_MOST_NAMED = 8


@dataclass(frozen=True)
class Subnormal:
    """One tensor of a layer, and the share of its numbers that is subnormal."""

    layer: str  # empty for the network itself
    tensor: str  # "weight", "bias", ...; "activations" for what the layer made
    share: float

    def __str__(self) -> str:
        return f"{self.layer or '(top)'} {self.tensor} {100 * self.share:.3g} %"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def subnormal_weights(model: nn.Module) -> list[Subnormal]:
    """The parameters and buffers that hold subnormal numbers; those that several layers share once.

    >>> layer = nn.Linear(2, 2)
    >>> layer.weight.data[0] = 1e-39
    >>> [str(found) for found in subnormal_weights(layer)]
    ['(top) weight 50 %']
    """
    found = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        layer, _, own_name = name.rpartition(".")
        count, total = counted(tensor)
        if count:
            found.append(Subnormal(layer, own_name, count / total))
    return found


def subnormal_activations(model: nn.Module, inputs: Example) -> list[Subnormal]:
    """The layers that make subnormal numbers of these inputs, in the order they run, in the mode the model is in.

    The model runs once, without gradients, on a copy of the inputs; random numbers stay as they were.
    """
    stack = ModuleStack(model)
    seen = Activations(stack)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), stack.watch(), _Watching(seen):
        Inputs.of(inputs).call(model)
    return seen.found()


class Activations:
    """Counts what the running layers make.

    Args:
        stack: says which layer is running.
        most: look at about so many numbers of a tensor, evenly spread; None looks at all.
    """

    def __init__(self, stack: ModuleStack, most: int | None = None):
        self._stack, self._most = stack, most
        self._counts: dict[str, tuple[int, int]] = {}

    def see(self, results: Iterable[Any], given: Iterable[Any] = ()) -> None:
        """What an operation gave; what only shows what it was given, as views do, is not made by the layer."""
        layer, shown = self._stack.running[-1], list(filter(_is_strided, given))
        for leaf in results:
            if _is_strided(leaf) and not any(torch._C._is_alias_of(leaf, value) for value in shown):  # type: ignore[attr-defined]
                count, total = counted(leaf, self._most)
                before = self._counts.get(layer, (0, 0))
                self._counts[layer] = (before[0] + count, before[1] + total)

    def found(self) -> list[Subnormal]:
        """The layers that made any."""
        return [Subnormal(layer, "activations", n / total) for layer, (n, total) in self._counts.items() if n]


class _Watching(TorchDispatchMode):
    def __init__(self, seen: Activations):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        given = () if func._schema.is_mutable else pytree.tree_leaves((args, kwargs))
        self.seen.see(pytree.tree_leaves(output), given)
        return output


def counted(tensor: Tensor, most: int | None = None) -> tuple[int, int]:
    """How many numbers are subnormal, and of how many; of integers and whatever has no values to look at none."""
    if not _is_strided(tensor) or tensor.is_meta or tensor.is_quantized or not tensor.numel():
        return 0, 0
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    if tensor.dtype not in _LAYOUTS:
        return 0, 0
    flat = _in_memory_order(tensor.detach())
    if most is not None and flat.numel() > most:
        step, channels = flat.numel() // most, tensor.shape[1] if tensor.dim() > 1 else 1
        while math.gcd(step, channels) > 1:  # else some channels would never be met
            step += 1
        flat = flat[::step]
    return sum(int(_are_subnormal(part).count_nonzero()) for part in flat.split(_PART)), flat.numel()


def _is_strided(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _in_memory_order(tensor: Tensor) -> Tensor:
    """All numbers that are stored, flat; of a dense tensor a view."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    stored = tensor[tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())]
    return stored.permute(sorted(range(stored.dim()), key=stored.stride, reverse=True)).reshape(-1)


def flushed(tensor: Tensor) -> Tensor:
    """The tensor with zeros for its subnormal numbers; itself where it holds none."""
    return tensor.masked_fill(_are_subnormal(tensor), 0) if counted(tensor)[0] else tensor


def _are_subnormal(tensor: Tensor) -> Tensor:
    integers, largest, fraction_bits = _LAYOUTS[tensor.dtype]
    magnitude = tensor.view(integers) & largest  # as an integer, without the sign
    return (magnitude > 0) & (magnitude < 1 << fraction_bits)


def in_words(found: Sequence[Subnormal]) -> str:
    """The first few by name and the number of the others."""
    named = ", ".join(map(str, found[:_MOST_NAMED]))
    return named + (f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else "")
