"""Depthwise convolution in training: which way wins for a shape on this processor, measured once for each direction.

Forward, gradient of the input and gradients of weight and bias are each computed by our kernels ("native") or by
torch's own operators ("reference"). The first call of a shape runs each way a few times on its own tensors, or on as
many of its images as take `TRIAL` seconds, and the faster one is taken from then on. Calls shorter than `SHORT` are not
worth it; they, and all calls under `torch.use_deterministic_algorithms(True)`, take the fixed way, which is what is
known of such shapes in general. Ways agree but for rounding.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.functional.measure import HOPELESS, Run, fastest, seconds_of

SHORT = 2e-4  # seconds of a call below which the fixed way stays
TRIAL = 8e-3  # seconds of one run in a measurement
ROUNDS = 4
GAIN = 0.95  # of the fixed way's time: what another way must stay below to be taken

Mask = tuple[bool, bool, bool]


@dataclass
class Ways:
    """A way for the gradient of the input and one for those of weight and bias, and why."""

    input: str
    weight: str
    why: str


@dataclass
class Choice:
    """What is known of one shape: the fixed way, and from the first calls on what was measured."""

    window: tuple[tuple[int, ...], list[int], tuple[int, ...]]  # stride, padding (before, after), dilation
    groups: int
    fixed: str
    measures: bool  # torch's operators can pad so: both ways are open
    forward: str | None = None  # None until measured
    why: str = ""
    backward: dict[tuple, Ways] = field(default_factory=dict)  # by the gradient's layout and what is asked for

    def forward_way(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
        if torch.are_deterministic_algorithms_enabled():
            return self.fixed
        if self.forward is None:
            self.forward, self.why = self._measure_forward(x, weight, bias)
        return self.forward

    def backward_ways(self, grad: Tensor, x: Tensor, weight: Tensor, mask: Mask) -> tuple[str, str]:
        if torch.are_deterministic_algorithms_enabled():
            return self.fixed, self.fixed
        key = (grad.stride(), mask)
        ways = self.backward.get(key)
        if ways is None:
            ways = self.backward[key] = self._measure_backward(grad, x, weight, mask)
        return ways.input, ways.weight

    def rule(self) -> str:
        """Why the fixed way is taken where nothing was measured."""
        if torch.are_deterministic_algorithms_enabled():
            return "known to win on this kind of shape; not measured, as deterministic algorithms are asked for"
        return "known to win on this kind of shape"

    def is_standard(self) -> bool:
        """Whether torch's own operators, derivatives and all, are what this comes to."""
        if self.fixed == "reference" and (not self.measures or torch.are_deterministic_algorithms_enabled()):
            return True
        if self.forward != "reference" or not self.backward or torch.are_deterministic_algorithms_enabled():
            return False
        return all(ways.input == ways.weight == "reference" for ways in self.backward.values())

    def _measure_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[str, str]:
        other = "reference" if self.fixed == "native" else "native"

        def run(way: str, images: int) -> Run:
            return lambda: self.compute(way, x[:images], weight, bias)

        images, why = self._images(len(x), run(self.fixed, len(x)))
        if why:
            return self.fixed, why
        least = fastest({way: run(way, images) for way in (self.fixed, other)}, ROUNDS)
        return _faster(self.fixed, other, least), _in_words(least, images)

    def _measure_backward(self, grad: Tensor, x: Tensor, weight: Tensor, mask: Mask) -> Ways:
        other = "reference" if self.fixed == "native" else "native"
        halves = (mask[0], False, False), (False, *mask[1:])

        def run(way: str, images: int, part: Mask) -> Run:
            return lambda: self.gradients(way, grad[:images], x[:images], weight, part)

        images, why = self._images(len(x), run(self.fixed, len(x), mask))
        if why:
            return Ways(self.fixed, self.fixed, why)
        least = fastest({way: run(way, images, mask) for way in (self.fixed, other)}, ROUNDS)
        whole = _faster(self.fixed, other, least)
        words = _in_words(least, images)
        if not (mask[0] and any(mask[1:])) or len(least) == 1:
            return Ways(whole, whole, words)
        parts = [fastest({way: run(way, images, half) for way in (self.fixed, other)}, ROUNDS) for half in halves]
        ways = [min(part, key=lambda way: part[way]) for part in parts]
        apart = sum(min(part.values()) for part in parts)
        if ways[0] != ways[1] and apart < GAIN * least[whole]:
            apart_in_words = f"input's by {ways[0]} and weight's by {ways[1]} {apart * 1e3:.2f} ms"
            return Ways(ways[0], ways[1], f"{words}; {apart_in_words}")
        return Ways(whole, whole, words)

    def _images(self, batch: int, run: Run) -> tuple[int, str]:
        """How many images to measure with; or why nothing is measured."""
        if not self.measures:
            return 0, self.rule()
        run()
        taken = seconds_of(run)
        if taken < SHORT:
            return 0, f"{self.rule()}; {taken * 1e3:.2f} ms are too short to measure"
        return max(1, min(batch, round(batch * TRIAL / taken))), ""

    def compute(self, way: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if way == "native":
            return torch.ops.separable.depthwise_conv_inference.default(x, weight, bias, *self.window, 0)
        stride, padding, dilation = self.window
        return F.conv2d(x, weight, bias, stride, padding[::2], dilation, self.groups)

    def gradients(self, way: str, grad: Tensor, x: Tensor, weight: Tensor, mask: Mask) -> Any:
        """Of input, weight and bias; what `mask` does not ask for is nothing, or an empty tensor."""
        if way == "native":
            return torch.ops.separable.depthwise_conv_backward.default(grad, x, weight, *self.window, *mask)
        stride, padding, dilation = self.window
        window = (list(stride), padding[::2], list(dilation), False, [0] * len(stride))
        return torch.ops.aten.convolution_backward.default(
            grad, x, weight, [weight.shape[0]], *window, self.groups, list(mask)
        )


def _faster(fixed: str, other: str, least: dict[str, float]) -> str:
    return other if least.get(other, float("inf")) < GAIN * least[fixed] else fixed


def _in_words(least: dict[str, float], images: int) -> str:
    times = " and ".join(f"{way} {seconds * 1e3:.2f} ms" for way, seconds in least.items())
    lost = "" if len(least) > 1 else f", the other more than {HOPELESS:.0f} times as long"
    return f"measured: {times}{lost} for {images} image{'s' * (images > 1)}"
