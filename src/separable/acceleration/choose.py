"""Which kernel runs a dense convolution: timed once on its real shape, when the plan is made.

Every one has two forms, ours and oneDNN's; a 3x3 convolution of stride 1 also Winograd's of 4x4 or 2x2 outputs
(csrc/winograd_conv.h). Which is fastest depends on shape and processor. The time spent is bounded; what was chosen is
kept.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from separable import _native
from separable.acceleration.operations.dense_conv import DIRECT, ONEDNN, DenseConv
from separable.acceleration.steps import Step
from separable.cost import processor
from separable.functional.measure import Run, fastest, seconds_of

_MOST_SECONDS = 1.0  # of one network, and what the layer takes that was begun last
_TRIAL_SECONDS = 2e-3  # of one run in a measurement
_LONG_SECONDS = 0.1  # of one image, from which a layer is not measured
_GAIN = 0.97  # of the time of the fixed rule's form: what another must need to be worth leaving it
_GAIN_OUTSIDE, _SECONDS_OUTSIDE = 0.9, 1e-5  # of oneDNN: a program is left for it and entered again, caches colder


@dataclass
class Choices:
    """What was found for each shape of a convolution; it travels with the network.

    tune: whether to measure. Without it a fixed rule decides, the same on every processor and in every run.
    """

    tune: bool = True
    forms: dict[tuple, int] = field(default_factory=dict)  # of each shape, one of DenseConv.forms
    seconds: float = 0.0  # spent on measuring, of all plans in this process

    def choose(self, steps: list[Step], make: Callable[[Step], Run], onednn: bool) -> None:
        """Set `form` of every step that has a choice.

        Args:
            make: gives a call that runs one step alone.
            onednn: whether its form may be taken.
        """
        several = [step for step in steps if isinstance(step, DenseConv) and len(step.forms) > 1]
        for step in sorted(several, key=lambda step: -_macs(step)):  # most to gain first
            key = _shape(step)
            if key not in self.forms and self.tune and self.seconds < _MOST_SECONDS:
                started = time.perf_counter()
                self.forms[key] = _fastest(step, make)
                self.seconds += time.perf_counter() - started
            kept = self.forms.get(key)
            fits = kept in step.forms and (onednn or kept != ONEDNN)  # oneDNN may be missing here
            step.form = kept if kept is not None and fits else _rule(step)


def _macs(step: DenseConv) -> int:
    kernel = step.kernel_size[0] * step.kernel_size[1]
    return step.batch * step.out[0] * step.out[1] * step.c_in // step.groups * step.c_out * kernel


def _shape(step: DenseConv) -> tuple:
    sizes = (step.batch, step.c_in, step.c_out, step.groups, step.size, step.out, *step.window, step.x_strides)
    ends = (step.other is not None, step.activation, step.activation_last)
    return (*sizes, *ends, _native.isa(), processor())  # for any number of threads


def _rule(step: DenseConv) -> int:
    """Winograd's where its transforms, a pass over each channel, are small beside the products that they save."""
    if not step.has_winograd_form:
        return DIRECT
    tiles = step.batch * -(-step.out[0] // 4) * -(-step.out[1] // 4)
    return 4 if min(step.c_in, step.c_out) >= 32 and tiles >= 32 else DIRECT


def _fastest(step: DenseConv, make: Callable[[Step], Run]) -> int:
    """The form of the least time on some of the images; the fixed rule's unless another is clearly faster."""
    ruled = _rule(step)
    once = seconds_of(make(replace(step, form=ruled, batch=1)))
    if once > _LONG_SECONDS:
        return ruled
    images = max(1, min(step.batch, round(_TRIAL_SECONDS / once)))
    ways = {ruled: make(replace(step, form=ruled, batch=images))}
    for form in step.forms:
        with suppress(Exception):  # a form that fails is none
            ways.setdefault(form, make(replace(step, form=form, batch=images)))
    least = fastest(ways, 1 if once > _TRIAL_SECONDS else 3)
    if ONEDNN in least:
        least[ONEDNN] = least[ONEDNN] / _GAIN_OUTSIDE + _SECONDS_OUTSIDE
    best = min(least, key=least.__getitem__)
    return best if least[best] < _GAIN * least[ruled] else ruled
