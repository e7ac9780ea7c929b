"""Borders of one number, and parts cut off: csrc/pad.h. What pads by that number as it goes takes them in."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.places import Strides, channels_last, contiguous, innermost_of
from separable.acceleration.steps import Runs, Step, as_view
from separable.acceleration.writer import Writer, bits
from separable.functional.arguments import Window

_DIMS = 4  # of the kernel


@dataclass(eq=False)
class Pad(Step):
    """Of arrays of four dimensions in the order of the result's memory."""

    kernel = "pad"

    size: tuple[int, ...] = ()
    out: tuple[int, ...] = ()
    before: tuple[int, ...] = ()  # negative where it is cut off
    x_strides: Strides = ()
    value: float = 0.0

    @property
    def floats_read(self) -> int:
        return torch.Size(self.size).numel()

    @property
    def floats_made(self) -> int:
        return torch.Size(self.out).numel()

    def fields(self, writer: Writer) -> list[int]:
        pointers = [writer.pointer(self.x, self.x_offset), writer.pointer(self.y)]
        return [*pointers, *self.size, *self.out, *self.before, *self.x_strides, bits(self.value)]

    def compute(self, runs: Runs) -> Tensor:
        by: list[int] = []
        for size, out, before in zip(self.size, self.out, self.before, strict=True):
            by = [before, out - size - before, *by]
        return F.pad(as_view(runs[self.x], self.size, self.x_strides, self.x_offset), by, value=self.value)


def _pad(a: Arguments) -> Node:
    shape, by = a.value("self").shape, list(a["pad"])
    if a.given.get("mode", "constant") != "constant":
        raise LeaveAloneError("it pads by other values than one constant")
    if len(shape) > _DIMS or 0 in (*shape, *a.made.shape):
        raise LeaveAloneError("it pads more than four dimensions, or what is empty")
    node = Node(partial(_lay_out, by=by), [a.number("self")], [a.result], a.call, pads_by=float(a["value"] or 0.0))
    dims = len(shape) - 2
    if dims in (1, 2) and min(by) >= 0 and not any(by[2 * dims :]):
        left, right, top, bottom = [*by, 0, 0][:4]
        node.window = Window((1, 1), ((top, bottom), (left, right)), (1, 1))
    return node


def _lay_out(layout: Layout, node: Node, by: list[int]) -> None:
    shape, made, place = layout.shape(node.inputs[0]), layout.shape(node.output), layout.places[node.inputs[0]]
    before = [0] * (len(shape) - len(by) // 2) + by[0::2][::-1]
    image = len(shape) == _DIMS and innermost_of(shape, place.strides) == 1
    order = [0, 2, 3, 1] if image else list(range(len(shape)))
    step = layout.emit(node, Pad, place, channels_last(made) if image else contiguous(made))
    ones = (1,) * (_DIMS - len(shape))
    step.size, step.out = ((*ones, *(sizes[i] for i in order)) for sizes in (shape, made))
    step.before = (*(0 for _ in ones), *(before[i] for i in order))
    step.x_strides = (*(0 for _ in ones), *(place.strides[i] for i in order))
    assert node.pads_by is not None
    step.value = node.pads_by


Pad.calls = dict.fromkeys(("aten::pad", "aten::constant_pad_nd"), _pad)
