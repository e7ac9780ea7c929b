"""Which convolutions stay as they are, and why: layers that no chain of others could stand in for."""

import math
from collections import defaultdict
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from separable.conversion.patches import PLAIN, TRANSPOSED
from separable.conversion.trial import equal, tried
from separable.inputs import Inputs

CONVOLUTIONS = (*PLAIN, *TRANSPOSED)


def reasons(model: nn.Module, batch: Inputs, names: list[str]) -> dict[str, str]:
    """Of the convolutions of these names, those that stay, with the reason."""
    alone = {name: why_not(model.get_submodule(name)) for name in names}
    found = {name: reason for name, reason in alone.items() if reason}
    shared = _shared_weights(model)
    found |= {name: "it shares its weights with another layer" for name in names if name in shared and not alone[name]}
    looked_into = _looked_into(model, batch, [name for name in names if name not in found])
    reason = "the network uses the layer itself (such as its weight), not only its output"
    return found | dict.fromkeys(looked_into, reason)


def why_not(conv: Any) -> str | None:
    """Why a layer has no separable form here, in words; None if it has one."""
    if parametrize.is_parametrized(conv):
        return "a parametrization computes its weight; torch.nn.utils.parametrize.remove_parametrizations takes it away"
    if type(conv) not in CONVOLUTIONS:
        return f"it is a {type(conv).__name__}, not torch.nn.Conv1d, Conv2d or Conv3d itself"
    if conv.groups > 1 and conv.groups in (conv.in_channels, conv.out_channels):
        return "it is depthwise already"
    if math.prod(conv.kernel_size) == 1:
        return "it is pointwise (one tap)"
    hooks = [*conv._forward_hooks.values(), *conv._forward_pre_hooks.values()]
    if not all(isinstance(hook, (WeightNorm, SpectralNorm)) for hook in hooks):  # which only make its weight
        return "it has hooks of its own"
    return None


def _looked_into(model: nn.Module, batch: Inputs, names: list[str]) -> set[str]:
    """The layers that the network uses itself, such as their weight, and not only their output: found by trying.

    Each is wrapped in a module of another kind. Where the network then fails or gives something else, one is tried
    after the other.
    """

    def given(wrapped: list[str]) -> list[Tensor] | None:
        return tried(model, batch, lambda structure: _wrap(structure, wrapped))

    names = [name for name in names if name]
    expected = given([])
    if not names or equal(given(names), expected) or not equal(given([]), expected):  # by chance: it tells nothing
        return set()
    return {name for name in names if not equal(given([name]), expected)}


def _wrap(structure: nn.Module, names: list[str]) -> None:
    for name in names:
        layer = structure.get_submodule(name)
        for other, module in list(structure.named_modules(remove_duplicate=False)):
            if module is layer and other:
                structure.set_submodule(other, nn.Sequential(layer))


def _shared_weights(model: nn.Module) -> set[str]:
    """Names of modules whose weight is also another module's."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            owners[id(weight)].append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}
