"""How long a network and each of its layers take, by running it.

A pass is timed whole, in turn with a pass in which each operation is timed as it runs, on real inputs, in its place; a
layer's time is the median over the passes of the sum of its operations. Which layer an operation belongs to is noted
in a pass of its own beforehand, so that the timed passes do nothing but read the clock.

Layers whose native kernels run as one are timed in parts, for their times to be known: what running as one spares is
the difference to a third whole pass, in parts and untimed inside.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from separable import _native
from separable.cost import trace
from separable.cost.count import misfit
from separable.cost.machine import clock_s
from separable.errors import InputError
from separable.inputs import Example, Inputs, own_copy
from separable.progress import track

Key = tuple[str, str]  # a layer's name and kind
Step = tuple[Callable, Key | None]  # an operation and the layer it belongs to; views and the like belong to none

_WARM_UP = 2


@dataclass
class Timing:
    """What the passes gave. interrupted_ms is what a median leaves out: on a busy machine every pass is interrupted
    somewhere, but seldom in the same layer, so that the layers' medians add up to less than a pass of layers takes."""

    network_ms: float
    spread: float  # the middle half of the whole passes spans this share of their median
    interrupted_ms: float
    fused_ms: float  # spared by layers that run as one; 0 where none does
    layer_ms: dict[Key, float]
    dense: dict[Key, tuple]  # the arguments of each dense convolution's first call


def time_in_turn(model: nn.Module, example: Example, repeats: int) -> Timing:
    """Whole passes and passes timed by layer, in turn."""
    inputs = Inputs.of(example)
    device = inputs.tensors()[0].device
    whole_ms: list[float] = []
    apart_ms: list[float] = []  # whole passes in parts, of a network that has layers which run as one
    passes: list[dict[Key, float]] = []
    try:
        steps, dense = _recorded_pass(model, inputs)
        fuses = _fuses(model, inputs)
        for i in track(range(_WARM_UP + repeats), "timing the network"):
            whole = _whole_pass_ms(model, inputs, device)
            if fuses:
                with _native.apart():
                    in_parts = _whole_pass_ms(model, inputs, device)
            by_layer = _timed_pass(model, inputs, steps)
            if i >= _WARM_UP:
                whole_ms.append(whole)
                apart_ms.append(in_parts if fuses else whole)
                passes.append(by_layer)
    except InputError:
        raise
    except Exception as error:
        raise misfit(error, type(model).__name__, inputs) from error
    layer_ms = {key: statistics.median(ms[key] for ms in passes) for key in passes[0]}
    together_ms = statistics.median(sum(ms.values()) for ms in passes)
    interrupted_ms = max(0.0, together_ms - sum(layer_ms.values()))  # of few passes the medians may add up to more
    network_ms = statistics.median(whole_ms)
    fused_ms = statistics.median(apart_ms) - network_ms
    return Timing(network_ms, spread(whole_ms), interrupted_ms, fused_ms, layer_ms, dense)


def _whole_pass_ms(model: nn.Module, inputs: Inputs, device: torch.device) -> float:
    fresh = own_copy(inputs)  # a network may write into its input
    started = clock_s(device)
    model(*fresh.args, **fresh.named)
    return (clock_s(device) - started) * 1e3


def _fuses(model: nn.Module, inputs: Inputs) -> bool:
    """Whether any layer runs as one what the timed passes run in parts."""
    with _native.apart() as found:
        inputs.call(model)
    return found.happened


def _recorded_pass(model: nn.Module, inputs: Inputs) -> tuple[list[Step], dict[Key, tuple]]:
    """One pass that notes which layer each operation belongs to, and how dense convolutions are called."""
    steps: list[Step] = []
    dense: dict[Key, tuple] = {}

    def run(func: Callable, args: tuple, kwargs: dict) -> tuple[Any, tuple]:
        steps.append((func, None))
        return func(*args, **kwargs), args

    def add(name: str, op: trace.Operation, args: tuple) -> None:
        steps[-1] = (steps[-1][0], (name, op.kind))
        if op.kind == "dense":
            dense.setdefault((name, op.kind), args)

    fresh = own_copy(inputs)
    stack = trace.ModuleStack(model)
    with stack.watch(), trace.Trace(model, stack, trace.Gradients(model, ()), add, run):
        model(*fresh.args, **fresh.named)
    return steps, dense


class _Stopwatch(TorchDispatchMode):
    """Times each operation and does nothing else: what is slow here would cool the caches between operations."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.timed: list[tuple[Callable, float]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        started = clock_s(self.device)
        output = func(*args, **kwargs) if kwargs else func(*args)
        self.timed.append((func, clock_s(self.device) - started))
        return output


def _timed_pass(model: nn.Module, inputs: Inputs, steps: list[Step]) -> dict[Key, float]:
    """One pass in which each operation is timed as it runs: ms of each layer."""
    fresh = own_copy(inputs)
    with _Stopwatch(inputs.tensors()[0].device) as stopwatch:
        model(*fresh.args, **fresh.named)
    if [func for func, _ in stopwatch.timed] != [func for func, _ in steps]:
        raise InputError("model", type(model).__name__, "must run the same operations in each pass to be profiled")
    total_ms: dict[Key, float] = defaultdict(float)
    for (_, key), (_, seconds) in zip(steps, stopwatch.timed, strict=True):
        if key is not None:
            total_ms[key] += seconds * 1e3
    return dict(total_ms)


def interleaved_ms(
    calls: dict[str, Callable[[], object]], rounds: int = 60, warmup: int = 10, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """The median time of each call in ms; they run by turns, so that a noisy moment hits all of them alike.

    Args:
        calls: what to time, by name.
        rounds: how often each is timed, after `warmup` calls that are not.
        device: where the calls compute; its queue is waited for before the clock is read.

    Raises:
        InputError: fewer than one round, or a negative number of calls to warm up.

    >>> taken = interleaved_ms({"short": lambda: sum(range(10)), "long": lambda: sum(range(100_000))}, rounds=5)
    >>> taken["short"] < taken["long"]
    True
    """
    for name, value, least in (("rounds", rounds, 1), ("warmup", warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(name, value, f"must be a whole number of at least {least}")
    place = torch.device(device)
    taken_ms: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warmup + rounds):
        for name, call in calls.items():
            started = clock_s(place)
            call()
            ended = clock_s(place)
            if i >= warmup:
                taken_ms[name].append((ended - started) * 1e3)
    return {name: statistics.median(times) for name, times in taken_ms.items()}


def spread(times_ms: list[float]) -> float:
    """Distance between the quartiles, as a share of the median."""
    if len(times_ms) < 2:
        return 0.0
    lower, median, upper = statistics.quantiles(times_ms, n=4, method="inclusive")
    return (upper - lower) / median
