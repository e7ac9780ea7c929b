"""Milliseconds of a layer or a network on this machine, compared fairly: by turns, medians, without gradients."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from separable.cost import interleaved_ms
from separable.inputs import own_copy

_REPEATS = 15


@torch.inference_mode()
def medians_ms(modules: Sequence[Callable[[Tensor], object]], example: Tensor) -> list[float]:
    """The median time of each layer's call on `example`, measured by turns after two calls to warm up."""
    calls: dict[str, Callable[[], object]] = {str(i): partial(module, example) for i, module in enumerate(modules)}
    return list(interleaved_ms(calls, _REPEATS, warmup=2, device=example.device).values())


def network_ms(model: nn.Module, example: Tensor) -> float:
    return medians_ms([_own_input(model)], example)[0]


def ratio(model: nn.Module, other: nn.Module, example: Tensor) -> float:
    """How much of the other's time `model` takes."""
    ours, theirs = medians_ms([_own_input(model), _own_input(other)], example)
    return ours / theirs


def _own_input(model: nn.Module) -> Callable[[Tensor], object]:
    """Each call on a copy, for a network may write into its input, and values that drift may change its time."""
    return lambda example: model(own_copy(example))
