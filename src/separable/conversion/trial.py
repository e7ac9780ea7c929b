"""Try what a network gives once something in it is changed: what its code does is seen, not read."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from separable.conversion.streams import own_structure
from separable.inputs import Inputs, tensors


@torch.no_grad()
def tried(model: nn.Module, inputs: Inputs, change: Callable[[nn.Module], None]) -> list[Tensor] | None:
    """The tensors that a copy of the structure gives, changed in place; None where it fails, in whatever way."""
    structure = own_structure(model)
    try:
        change(structure)
        return list(tensors(inputs.call(structure)))
    except Exception:  # a network may fail in any way on what it does not expect
        return None


def equal(given: list[Tensor] | None, expected: list[Tensor] | None) -> bool:
    """Whether two networks that were tried both ran, and gave the same numbers."""
    if given is None or expected is None:
        return False
    return len(given) == len(expected) and all(map(torch.equal, given, expected))
