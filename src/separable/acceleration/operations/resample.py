"""Images of another size, by the nearest pixel or by weighted neighbours: csrc/resample.h."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations.relayout import ordered
from separable.acceleration.places import channels_last, contiguous, same_order
from separable.acceleration.steps import ImageStep, Runs
from separable.acceleration.tape import Ref
from separable.acceleration.writer import Writer

_FEW_CHANNELS = 8  # fewer are read as numbers of a row, not as pixels
_MOST_NUMBERS = 1 << 24  # of a row: tables hold indices as float32
Scales = tuple[float | None, float | None]


@dataclass(eq=False)
class Resample(ImageStep):
    kernel = "resample"

    rows: Tensor | None = None  # [3, out]: the first pixel, the second, the weight of the second
    columns: Tensor | None = None
    blends: bool = False  # else the first pixel alone

    def fields(self, writer: Writer) -> list[int]:
        tables = [writer.constants.vector(self.rows), writer.constants.vector(self.columns)]
        pointers = [writer.pointer(self.x, self.x_offset), *tables, writer.pointer(self.y)]
        return [*pointers, self.batch, self.c_in, *self.size, *self.out, int(self.blends)]

    def compute(self, runs: Runs) -> Tensor:
        x = self.read_images(runs)
        assert self.rows is not None
        assert self.columns is not None
        for dim, (first, second, weight) in ((3, self.columns), (2, self.rows)):
            near = x.index_select(dim, first.long())
            weight = weight.view(-1, 1) if dim == 2 else weight
            x = near * (1 - weight) + x.index_select(dim, second.long()) * weight if self.blends else near
        return x.permute(0, 2, 3, 1)


def _upsample(a: Arguments) -> Node:
    name = "input" if "input" in a.given else "self"
    shape, made = a.images(name).shape, a.made.shape
    if 0 in (*shape, *made):
        raise LeaveAloneError("it is empty")
    if max(shape[2], made[2], max(shape[3], made[3]) * min(shape[1], _FEW_CHANNELS)) >= _MOST_NUMBERS:
        raise LeaveAloneError("its rows are too long")
    scales = (a.given.get("scales_h"), a.given.get("scales_w"))
    if a.given.get("scale_factors") and not a.given.get("output_size"):
        scales = tuple(a["scale_factors"])
    lay_out = partial(_lay_out, scales=scales, align_corners=a.given.get("align_corners"))
    return a.node(lay_out, name)


def _lay_out(layout: Layout, node: Node, scales: Scales, align_corners: bool | None) -> None:
    number = node.inputs[0]
    shape, made = layout.shape(number), layout.shape(node.output)
    place, planar = layout.places[number], contiguous(shape)
    is_planar = same_order(shape, place.strides, planar) and shape[1] < _FEW_CHANNELS
    if not is_planar and shape[2] * shape[3] <= made[2] * made[3]:  # the smaller one is put in order
        is_planar = _is_returned_planar(layout, node)
    place = ordered(layout, number, planar if is_planar else channels_last(shape))
    step = layout.emit(node, Resample, place, contiguous(made) if is_planar else channels_last(made))
    step.blends = align_corners is not None
    step.rows, step.columns = (
        _weighted(shape[i], made[i], scale, align_corners)
        if align_corners is not None
        else _nearest(node.call.name, shape[i], made[i], scale)
        for i, scale in zip((2, 3), scales, strict=True)
    )
    step.batch, step.c_in, step.size, step.out = shape[0], shape[1], (shape[2], shape[3]), (made[2], made[3])
    if is_planar:
        step.batch, step.c_in = shape[0] * shape[1], 1
    elif shape[1] < _FEW_CHANNELS:
        step.columns, step.c_in = _numbers(step.columns, shape[1]), 1
        step.size, step.out = (shape[2], shape[3] * shape[1]), (made[2], made[3] * shape[1])
    step.c_out = step.c_in


def _is_returned_planar(layout: Layout, node: Node) -> bool:
    """It leaves the network in torch's default layout."""
    value = layout.tape.values[node.output]
    returned = any(isinstance(leaf, Ref) and leaf.index == node.output for leaf in layout.tape.outputs)
    return returned and same_order(value.shape, value.strides, contiguous(value.shape))


def _numbers(table: Tensor, channels: int) -> Tensor:
    """The table of pixels as one of their numbers."""
    pixels = table[:2, :, None] * channels + torch.arange(channels, dtype=torch.float32)
    return torch.cat([pixels, table[2:, :, None].expand(1, -1, channels)]).flatten(1)


def _nearest(name: str, size: int, out: int, scale: float | None) -> Tensor:
    """Torch itself is asked: which pixel is the nearest is a matter of how it rounds."""
    ramp = torch.arange(size, dtype=torch.float32).view(1, 1, 1, size)
    operation = getattr(torch.ops.aten, name.removeprefix("aten::")).default
    first = operation(ramp, [1, out], None, scale).view(out)
    return torch.stack([first, first, torch.zeros(out, dtype=torch.float32)])


def _weighted(size: int, out: int, scale: float | None, align_corners: bool) -> Tensor:
    """Indices and weights in the float32 arithmetic of torch."""
    at = torch.arange(out, dtype=torch.float32)
    if size == out:
        return torch.stack([at, at, torch.zeros_like(at)])
    if align_corners:
        place = at * (torch.tensor(size - 1, dtype=torch.float32) / max(out - 1, 1))
    else:
        ratio = 1.0 / scale if scale is not None and scale > 0 else size / out
        place = ((at + 0.5) * torch.tensor(ratio, dtype=torch.float32) - 0.5).clamp(min=0)
    first = place.floor().clamp(max=size - 1)
    return torch.stack([first, (first + 1).clamp(max=size - 1), (place - first).clamp(0, 1)])


_NAMES = ("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d")
Resample.calls = {f"aten::{name}": _upsample for name in _NAMES}
