"""Which kernel runs a dense convolution: timed once on its real shape, when the plan is made.

Every one has two forms, ours and oneDNN's; a 3x3 convolution of stride 1 also Winograd's of 4x4 or 2x2 outputs
(csrc/winograd_conv.h). Which is fastest depends on shape and processor. The time spent is bounded; what was chosen is
kept.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from separable import _native
from separable.acceleration.operations.dense_conv import DIRECT, ONEDNN, DenseConv
from separable.acceleration.steps import Step
from separable.functional.depthwise_conv_choice import clock_of_work

_MOST_SECONDS = 1.0  # of one network
_MOST_CALLS, _ENOUGH_SECONDS = 3, 0.005  # of one form
_GAIN = 0.97  # of the time of the fixed rule's form: what another must need to be worth leaving it
_GAIN_OUTSIDE, _SECONDS_OUTSIDE = 0.9, 1e-5  # of oneDNN: a program is left for it and entered again, caches colder
Run = Callable[[], None]


@dataclass
class Choices:
    """What was found for each shape of a convolution; it travels with the network.

    tune: whether to measure. Without it a fixed rule decides, the same on every processor and in every run.
    """

    tune: bool = True
    forms: dict[tuple, int] = field(default_factory=dict)  # of each shape, one of DenseConv.forms
    seconds: float = 0.0  # spent on measuring, of all plans

    def choose(self, steps: list[Step], make: Callable[[Step], Run]) -> None:
        """Set `form` of every step that has a choice; `make` gives a call that runs one step alone."""
        several = [step for step in steps if isinstance(step, DenseConv) and len(step.forms) > 1]
        for step in sorted(several, key=lambda step: -_macs(step)):  # most to gain first
            key = _shape(step)
            if key not in self.forms and self.tune and self.seconds < _MOST_SECONDS:
                started = time.perf_counter()
                self.forms[key] = _fastest(step, make)
                self.seconds += time.perf_counter() - started
            kept = self.forms.get(key)
            step.form = kept if kept in step.forms else _rule(step)  # oneDNN may be missing here


def _macs(step: DenseConv) -> int:
    kernel = step.kernel_size[0] * step.kernel_size[1]
    return step.batch * step.out[0] * step.out[1] * step.c_in // step.groups * step.c_out * kernel


def _shape(step: DenseConv) -> tuple:
    own = (step.batch, step.c_in, step.c_out, step.groups, step.size, step.out, *step.window, step.x_strides)
    return (*own, step.other is not None, _native.isa())  # for any number of threads


def _rule(step: DenseConv) -> int:
    """Winograd's where its transforms, a pass over each channel, are small beside the products that they save."""
    if not step.has_winograd_form:
        return DIRECT
    tiles = step.batch * -(-step.out[0] // 4) * -(-step.out[1] // 4)
    return 4 if min(step.c_in, step.c_out) >= 32 and tiles >= 32 else DIRECT


def _fastest(step: DenseConv, make: Callable[[Step], Run]) -> int:
    """The form of the least time; the fixed rule's unless another is clearly faster."""
    times = {}
    for form in step.forms:
        step.form = form
        run = make(step)
        run()
        times[form] = _least_seconds(run)
        if form == ONEDNN:
            times[form] = times[form] / _GAIN_OUTSIDE + _SECONDS_OUTSIDE
    ruled, best = _rule(step), min(times, key=times.__getitem__)
    return best if times[best] < _GAIN * times[ruled] else ruled


def _least_seconds(run: Run) -> float:
    least, spent, calls, clock = float("inf"), 0.0, 0, clock_of_work()
    while calls < _MOST_CALLS and spent < _ENOUGH_SECONDS:
        started = clock()
        run()
        seconds = clock() - started
        least, spent, calls = min(least, seconds), spent + seconds, calls + 1
    return least
