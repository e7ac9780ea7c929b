"""Milliseconds of a layer or a network on this machine, compared fairly: by turns, medians, without gradients."""

import statistics
import time

import torch
from torch import Tensor, nn

_REPEATS = 15


@torch.inference_mode()
def medians_ms(modules: list[nn.Module], example: Tensor) -> list[float]:
    """The median time of each module's call on `example`, measured by turns after two calls to warm up."""
    times: list[list[float]] = [[] for _ in modules]
    for turn in range(_REPEATS + 2):
        for module, taken in zip(modules, times, strict=True):
            _settle(example)
            begin = time.perf_counter()
            module(example)
            _settle(example)
            if turn >= 2:
                taken.append((time.perf_counter() - begin) * 1e3)
    return [statistics.median(taken) for taken in times]


def network_ms(model: nn.Module, example: Tensor) -> float:
    return medians_ms([model], example)[0]


def ratio(model: nn.Module, other: nn.Module, example: Tensor) -> float:
    """How much of the other's time `model` takes."""
    ours, theirs = medians_ms([model, other], example)
    return ours / theirs


def _settle(example: Tensor) -> None:
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
