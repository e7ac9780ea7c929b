"""Which kernel runs a dense convolution: timed once on its real shape, when the plan is made.

A 3x3 convolution of stride 1 has three forms: direct, and Winograd's of 4x4 or 2x2 outputs (csrc/winograd_conv.h).
Which is fastest depends on shape and processor. The time spent is bounded; what was chosen is kept.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from separable import _native
from separable.acceleration.operations.dense_conv import DenseConv
from separable.acceleration.steps import Step

_MOST_SECONDS = 1.0  # of one network
_MOST_CALLS, _ENOUGH_SECONDS = 3, 0.005  # of one form
_GAIN = 0.97  # of the time of the fixed rule's form: what another must need to be worth leaving it
Run = Callable[[], None]


@dataclass
class Choices:
    """What was found for each shape of a convolution; it travels with the network.

    tune: whether to measure. Without it a fixed rule decides, the same on every processor and in every run.
    """

    tune: bool = True
    tiles: dict[tuple, int] = field(default_factory=dict)  # of each shape: 0 for the direct form
    seconds: float = 0.0  # spent on measuring, of all plans

    def choose(self, steps: list[Step], make: Callable[[Step], Run]) -> None:
        """Set `tile` of every step that has a choice; `make` gives a call that runs one step alone."""
        several = [step for step in steps if isinstance(step, DenseConv) and step.has_winograd_form]
        for step in sorted(several, key=lambda step: -_macs(step)):  # most to gain first
            key = _shape(step)
            if key not in self.tiles and self.tune and self.seconds < _MOST_SECONDS:
                started = time.perf_counter()
                self.tiles[key] = _fastest(step, make)
                self.seconds += time.perf_counter() - started
            step.tile = self.tiles.get(key, _rule(step))


def _macs(step: DenseConv) -> int:
    return step.batch * step.out[0] * step.out[1] * step.c_in * step.c_out * 9


def _shape(step: DenseConv) -> tuple:
    own = (step.batch, step.c_in, step.c_out, step.size, step.out, step.padding, step.other is not None)
    return (*own, _native.isa())  # for any number of threads, which must change no bit


def _rule(step: DenseConv) -> int:
    """Where the transforms, which take a pass over each channel, are small beside the products that they save."""
    tiles = step.batch * -(-step.out[0] // 4) * -(-step.out[1] // 4)
    return 4 if min(step.c_in, step.c_out) >= 32 and tiles >= 32 else 0


def _fastest(step: DenseConv, make: Callable[[Step], Run]) -> int:
    """The form of the least time; the fixed rule's unless another is clearly faster."""
    times = {}
    for tile in (0, 2, 4):
        step.tile = tile
        run = make(step)
        run()
        times[tile] = _least_seconds(run)
    ruled, best = _rule(step), min(times, key=times.__getitem__)
    return best if times[best] < _GAIN * times[ruled] else ruled


def _least_seconds(run: Run) -> float:
    least, spent, calls = float("inf"), 0.0, 0
    while calls < _MOST_CALLS and spent < _ENOUGH_SECONDS:
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        least, spent, calls = min(least, seconds), spent + seconds, calls + 1
    return least
