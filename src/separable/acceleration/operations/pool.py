"""The largest or the mean of each window, and the mean over each image: csrc/pool.h."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations import view
from separable.acceleration.operations.relayout import ordered
from separable.acceleration.places import as_image, channels_last, contiguous
from separable.acceleration.steps import ImageStep, Runs
from separable.acceleration.writer import Writer, bits
from separable.functional.arguments import Window


@dataclass(eq=False)
class Pool(ImageStep):
    kernel = "pool"

    average: bool = False
    factor: float = 0.0  # of the sums; 0: one over the number of pixels inside the image

    @property
    def is_mean(self) -> bool:
        """Over each image."""
        return self.average and self.kernel_size == self.size and self.out == (1, 1)

    def fields(self, writer: Writer) -> list[int]:
        images = [self.batch, self.c_in, *self.size, *self.out, *self.kernel_size, *self.stride, *self.padding]
        pointers = [writer.pointer(self.x, self.x_offset), writer.pointer(self.y)]
        return [*pointers, *images, int(self.average), bits(self.factor)]

    def compute(self, runs: Runs) -> Tensor:
        x = self.padded(self.read_images(runs), 0.0 if self.average else -math.inf)
        if not self.average:
            return F.max_pool2d(x, self.kernel_size, self.stride).permute(0, 2, 3, 1)
        sums = F.avg_pool2d(x, self.kernel_size, self.stride, divisor_override=1)
        if self.factor:
            return (sums * self.factor).permute(0, 2, 3, 1)
        ones = self.padded(torch.ones(1, 1, *self.size, dtype=torch.float32), 0.0)
        return (sums / F.avg_pool2d(ones, self.kernel_size, self.stride, divisor_override=1)).permute(0, 2, 3, 1)


def _mean(a: Arguments) -> Node:
    shape = a.value("self").shape
    dims = {d % len(shape) for d in a.given.get("dim") or ()}
    if len(shape) not in (3, 4) or dims != {*range(2, len(shape))} or 0 in shape:
        raise LeaveAloneError("it is no mean over height and width, or over a sequence")
    return a.node(_lay_out_mean, "self", is_heavy=True)


def _adaptive_mean(a: Arguments) -> Node:
    images = a.images("self")
    if 0 in images.shape[1:]:
        raise LeaveAloneError("its input is empty")
    size = a.pair("output_size", 1)
    if size == (1, 1):
        return a.node(_lay_out_mean, "self", is_heavy=True)
    if size == as_image(images.shape)[2:]:
        return view.identity(a)
    raise LeaveAloneError("it averages to more than one place")


def _lay_out_mean(layout: Layout, node: Node) -> None:
    shape, made = layout.shape(node.inputs[0]), layout.shape(node.output)
    place = ordered(layout, node.inputs[0], channels_last(shape))
    strides = channels_last(made) if len(made) == len(shape) else contiguous(made)
    shape = as_image(shape)
    step = layout.emit(node, Pool, place, strides, batch=shape[0], c_in=shape[1], c_out=shape[1])
    step.size, step.kernel_size, step.average = (shape[2], shape[3]), (shape[2], shape[3]), True


def _pool(a: Arguments) -> Node:
    shape, made = as_image(a.images("self").shape), as_image(a.made.shape)
    kernel, dilation = a.pair("kernel_size", 1), a.pair("dilation", 1)
    stride = a.pair("stride", 1) if a["stride"] else kernel
    average = a.call.name.startswith("aten::avg_pool")
    if dilation != (1, 1) or a.given.get("divisor_override") or 0 in shape:
        raise LeaveAloneError("it is dilated, divides by a number of its own, or is empty")
    before = a.pair("padding", 0)
    ends = [(o - 1) * s + k - n - p for o, s, k, n, p in zip(made[2:], stride, kernel, shape[2:], before, strict=True)]
    if a["ceil_mode"] and average and any(e > p for e, p in zip(ends, before, strict=True)):
        raise LeaveAloneError("its last windows reach beyond the padding")
    pairs = tuple((p, max(e, 0)) for p, e in zip(before, ends, strict=True))
    counts = bool(a.given.get("count_include_pad", True))
    node = a.node(_lay_out, "self", kernel=kernel, window=Window(stride, pairs, (1, 1)), is_heavy=True)
    node.average, node.counts_padding = average, counts
    node.border = -math.inf if not average else 0.0 if counts else None
    return node


def _lay_out(layout: Layout, node: Node) -> None:
    number = node.inputs[0]
    step = layout.emit_images(node, Pool, ordered(layout, number, channels_last(layout.shape(number))))
    step.average = node.average
    if node.counts_padding:
        step.factor = 1 / (step.kernel_size[0] * step.kernel_size[1])


Pool.calls = {
    "aten::mean": _mean,
    "aten::adaptive_avg_pool1d": _adaptive_mean,
    "aten::adaptive_avg_pool2d": _adaptive_mean,
    "aten::max_pool1d": _pool,
    "aten::max_pool2d": _pool,
    "aten::avg_pool1d": _pool,
    "aten::avg_pool2d": _pool,
}
