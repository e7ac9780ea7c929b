"""How far each step goes: a rate for each tensor relative to its own scale, a warm-up and a cosine, in steps or time.

Adam moves every weight by about its rate, whatever the size of its gradient. The factors of a decomposed convolution
have arbitrary scales (halve one, double the next: the same function), and so has a network whose norms were folded
away, so one rate for all is too large here and too small there. Each tensor's rate is proportional to its scale:

    weights     their root mean square (1 / sqrt(fan in) where all are zero)
    biases      the standard deviation of what their module gives: what they are added to

Sources: Shazeer and Stern 2018, "Adafactor", arXiv:1804.04235, section 8 (relative step sizes); You et al. 2020,
"LAMB", arXiv:1904.00962; Loshchilov and Hutter 2016, arXiv:1608.03983 (cosine).
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SCALE = 0.1  # of a tensor that takes the learning rate as it is given
_WARM_UP = 0.05  # of the whole, linear
_EPS = 1e-12  # far below any gradient that means something, so that the loss's unit does not matter either


class Spread:
    """The standard deviation of what each module with parameters of its own gives, over the calls seen."""

    def __init__(self, network: nn.Module):
        self.modules = {n: m for n, m in network.named_modules() if next(m.parameters(recurse=False), None) is not None}
        self.sums: dict[str, list[float]] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def ran(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                found = self.sums.setdefault(name, [0.0, 0.0, 0.0])
                values = output.detach()
                total, square = float(values.sum(dtype=torch.float64)), float(values.square().sum(dtype=torch.float64))
                found[:] = [found[0] + values.numel(), found[1] + total, found[2] + square]

        return ran

    def of(self, name: str) -> float | None:
        """None for a module that was not called, or gave no tensor."""
        if name not in self.sums:
            return None
        count, total, square = self.sums[name]
        return math.sqrt(max(0.0, square / count - (total / count) ** 2))


def scales(network: nn.Module, spread: Spread) -> dict[str, float]:
    """Of each parameter that is trained, by name."""
    found = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            owner, _, kind = name.rpartition(".")
            scale = float(parameter.detach().double().square().mean().sqrt())
            if kind == "bias":
                scale = spread.of(owner) or scale
            if not 0 < scale < math.inf:  # zeros: a layer that was put in to do nothing yet
                scale = 1.0 if parameter.dim() < 2 else 1 / math.sqrt(max(1, parameter[0].numel()))
            found[name] = scale
    return found


def optimizer(network: nn.Module, scale_of: dict[str, float], learning_rate: float) -> torch.optim.Optimizer:
    """Adam, a group for each scale; `set_rate` sets their rates before every step."""
    parameters = dict(network.named_parameters())
    groups: dict[float, list[Tensor]] = {}
    for name, scale in scale_of.items():
        groups.setdefault(scale / _SCALE, []).append(parameters[name])
    made = [{"params": group, "scale": scale, "lr": learning_rate * scale} for scale, group in groups.items()]
    kinds = {(p.device.type, p.dtype) for group in groups.values() for p in group}
    fused = kinds <= {(device, dtype) for device in ("cpu", "cuda") for dtype in (torch.float32, torch.float64)}
    return torch.optim.Adam(made, lr=learning_rate, eps=_EPS, fused=fused or None)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def factor(step: int, steps: int) -> float:
    """Of the learning rate before step number `step`, from 0."""
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


class Clock:
    """Time spent, over all parts of a run that was resumed, and the time limit."""

    def __init__(self, minutes: float | None):
        self.limit_s = math.inf if minutes is None else 60 * minutes
        self.reserved_s = 0.0  # for the last validation
        self.began = time.monotonic()

    def spent_s(self) -> float:
        return time.monotonic() - self.began

    def resume(self, spent_s: float, reserved_s: float) -> None:
        self.began, self.reserved_s = time.monotonic() - spent_s, reserved_s

    def share(self) -> float:
        """Of the time for training that is spent; 1 or more: it is up."""
        return 0.0 if self.limit_s == math.inf else self.spent_s() / max(1e-9, self.limit_s - self.reserved_s)
