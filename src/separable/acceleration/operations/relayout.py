"""Copies: values in another order, and several joined in one; csrc/relayout.h."""

from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.places import (
    Memory,
    Place,
    Strides,
    channels_last,
    contiguous,
    innermost,
    row_stride,
    rows_follow,
    same_order,
)
from separable.acceleration.steps import RowStep, Runs, Step, as_view
from separable.acceleration.writer import Writer

MOST_DIMS = 6  # of the kernel
AnyRowStep = TypeVar("AnyRowStep", bound=RowStep)


@dataclass(eq=False)
class Relayout(Step):
    kernel = "relayout"

    sizes: tuple[int, ...] = ()
    x_strides: Strides = ()
    y_strides: Strides = ()

    @property
    def floats_read(self) -> int:
        return torch.Size(self.sizes).numel()

    @property
    def floats_made(self) -> int:
        return torch.Size(self.sizes).numel()

    def fields(self, writer: Writer) -> list[int]:
        missing = MOST_DIMS - len(self.sizes)
        sizes, x_strides, y_strides = [1] * missing, [0] * missing, [0] * missing
        pointers = [writer.pointer(self.x, self.x_offset), writer.pointer(self.y, self.y_offset)]
        return [*pointers, *sizes, *self.sizes, *x_strides, *self.x_strides, *y_strides, *self.y_strides]

    def run(self, runs: Runs) -> None:
        made = runs.setdefault(self.y, torch.empty(self.y.floats, dtype=torch.float32))
        x = as_view(runs[self.x], self.sizes, self.x_strides, self.x_offset)
        as_view(made, self.sizes, self.y_strides, self.y_offset).copy_(x)


def copy(
    layout: Layout, place: Place, shape: tuple[int, ...], strides: Strides, into: tuple[Memory, int] | None = None
) -> Place:
    """The same value in other strides, in new memory or at an offset of the memory given."""
    memory, offset = into or (Memory(torch.Size(shape).numel()), 0)
    step = Relayout(place.memory, memory, [], place.offset, offset)
    step.sizes, step.x_strides, step.y_strides = shape, place.strides, strides
    layout.steps.append(step)
    return Place(memory, offset, strides)


def ordered(layout: Layout, number: int, strides: Strides) -> Place:
    """The value in these dense strides, copied if it lies otherwise."""
    place, shape = layout.places[number], layout.shape(number)
    return place if same_order(shape, place.strides, strides) else copy(layout, place, shape, strides)


def from_the_start(layout: Layout, number: int, strides: Strides) -> Memory:
    """Memory that begins with the value in these dense strides."""
    place = ordered(layout, number, strides)
    return place.memory if not place.offset else copy(layout, place, layout.shape(number), strides).memory


def rows(layout: Layout, number: int, dim: int) -> tuple[Place, int]:
    """The value as rows along `dim`, in the order of the other dimensions, and their distance."""
    place, shape = layout.places[number], layout.shape(number)
    wanted = innermost(shape, dim)
    distance = row_stride(shape, place.strides, dim)
    if distance is None or not rows_follow(shape, place.strides, wanted, dim):
        place, distance = copy(layout, place, shape, wanted), shape[dim]
    return place, distance


def dense_rows(layout: Layout, number: int, dim: int) -> Place:
    """The value in whatever dense order it has with `dim` innermost, copied if it has none."""
    place, shape = layout.places[number], layout.shape(number)
    if row_stride(shape, place.strides, dim) == shape[dim]:
        return place
    return copy(layout, place, shape, innermost(shape, dim))


def emit_rows(layout: Layout, node: Node, kind: type[AnyRowStep], place: Place, dim: int) -> AnyRowStep:
    """A step that makes rows along `dim` of as many and as long ones, in the order in which they lie."""
    shape = layout.shape(node.inputs[0])
    step = layout.emit(node, kind, place, place.strides, c_in=shape[dim], c_out=shape[dim])
    step.rows = torch.Size(shape).numel() // shape[dim] if shape[dim] else 0
    return step


def _cat(a: Arguments) -> Node:
    refs = a["tensors"]
    if any(a.tape.values[ref.index].constant is not None for ref in refs):
        raise LeaveAloneError("it joins constants")
    made = a.made.shape
    inputs = [ref.index for ref in refs]
    if any(len(a.tape.values[n].shape) != len(made) for n in inputs):
        raise LeaveAloneError("it joins values of different ranks")
    return Node(_lay_out_cat, inputs, [a.result], a.call, dim=a["dim"] % len(made))


def _lay_out_cat(layout: Layout, node: Node) -> None:
    made, first = layout.shape(node.output), layout.shape(node.inputs[0])
    image = len(made) in (3, 4) and same_order(first, layout.places[node.inputs[0]].strides, channels_last(first))
    strides = channels_last(made) if image else contiguous(made)
    memory, at = Memory(torch.Size(made).numel()), 0
    for number in node.inputs:
        shape = layout.shape(number)
        copy(layout, layout.places[number], shape, strides, (memory, at * strides[node.dim]))
        at += shape[node.dim]
    layout.steps[-1].covers = [*node.merged, node.call]
    layout.places[node.output] = Place(memory, 0, strides)


def _pixel_shuffle(a: Arguments) -> Node:
    if 0 in a.images("self").shape:
        raise LeaveAloneError("its input is empty")
    return a.node(partial(_lay_out_pixel_shuffle, factor=a["upscale_factor"]), "self")


def _lay_out_pixel_shuffle(layout: Layout, node: Node, factor: int) -> None:
    place, made = layout.places[node.inputs[0]], layout.shape(node.output)
    (image, channel, row, pixel), (batch, channels, height, width) = place.strides, made
    step = layout.emit(node, Relayout, place, channels_last(made))
    step.sizes = (batch, channels, height // factor, factor, width // factor, factor)
    step.x_strides = (image, channel * factor**2, row, channel * factor, pixel, channel)
    image, channel, row, pixel = channels_last(made)
    step.y_strides = (image, channel, row * factor, row, pixel * factor, pixel)


Relayout.calls = {"aten::cat": _cat, "aten::pixel_shuffle": _pixel_shuffle}
