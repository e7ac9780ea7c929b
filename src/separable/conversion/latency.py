"""Milliseconds of a layer or a network on this machine, compared fairly: by turns, medians, without gradients."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from separable.cost import interleaved_ms

_REPEATS = 15


@torch.inference_mode()
def medians_ms(modules: list[nn.Module], example: Tensor) -> list[float]:
    """The median time of each module's call on `example`, measured by turns after two calls to warm up."""
    calls: dict[str, Callable[[], object]] = {str(i): partial(module, example) for i, module in enumerate(modules)}
    return list(interleaved_ms(calls, _REPEATS, warmup=2, device=example.device).values())


def network_ms(model: nn.Module, example: Tensor) -> float:
    return medians_ms([model], example)[0]


def ratio(model: nn.Module, other: nn.Module, example: Tensor) -> float:
    """How much of the other's time `model` takes."""
    ours, theirs = medians_ms([model, other], example)
    return ours / theirs
