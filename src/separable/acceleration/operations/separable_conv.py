"""Chains of a pointwise, a depthwise and a pointwise step, each perhaps missing: csrc/separable_conv.h.

No call becomes one; `fuse` makes them of other steps.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from separable.acceleration.operations.pointwise_conv import PointwiseConv
from separable.acceleration.places import Memory
from separable.acceleration.steps import ImageStep, Runs, Step
from separable.acceleration.writer import CODES, NULL, Writer


@dataclass(eq=False)
class SeparableConv(Step):
    kernel = "separable_conv"

    @classmethod
    def of(cls, parts: Sequence[Step]) -> "SeparableConv":
        first, last, covers = parts[0], parts[-1], [call for part in parts for call in part.covers]
        return cls(first.x, last.y, covers, first.x_offset, c_in=first.c_in, c_out=last.c_out, parts=list(parts))

    @property
    def name(self) -> str:
        kinds = [part.kernel.removesuffix("_conv") for part in self.parts]
        return f"{self.kernel} ({' + '.join(kinds)})" if len(kinds) > 1 else self.kernel

    @property
    def depthwise(self) -> ImageStep | None:
        return next((part for part in self.parts if isinstance(part, ImageStep)), None)

    @property
    def batch(self) -> int:
        return self.depthwise.batch if self.depthwise else 1

    @property
    def floats_read(self) -> int:
        return self.parts[0].floats_read

    @property
    def floats_made(self) -> int:
        return self.parts[-1].floats_made

    @property
    def reads(self) -> list[Memory]:
        inside = [part.y for part in self.parts]
        return [self.x, *(m for part in self.parts for m in part.reads if m not in inside)]

    def weights(self) -> list[Tensor]:
        """Those of the parts; rows and columns of the pointwise weights beside the depthwise step change places, since
        within a chain the maps of a channel lie apart."""
        found, deep = [weight for part in self.parts for weight in part.weights()], self.depthwise
        if deep is not None and deep is not self.parts[0]:
            found[0] = maps_apart(found[0], deep.c_in, deep.c_out).contiguous()
        if deep is not None and deep is not self.parts[-1]:
            found[-1] = maps_apart(found[-1].t(), deep.c_out, deep.c_in).t().contiguous()
        return found

    def fields(self, writer: Writer) -> list[int]:
        first, deep, last = self.parts[0], self.depthwise, self.parts[-1]
        writer.inside = {part.y for part in self.parts[:-1]}
        expand = _NO_POINTWISE
        if isinstance(first, PointwiseConv):
            bias = first.bias if deep is None or first.bias is None else maps_apart(first.bias, deep.c_in, deep.c_out)
            expand = dataclasses.replace(first, bias=bias).fields(writer)
        depthwise = _no_depthwise(first) if deep is None else _depthwise_fields(deep, writer)
        project = last.fields(writer) if isinstance(last, PointwiseConv) else _NO_POINTWISE
        pointers = [writer.pointer(self.x, self.x_offset), writer.pointer(self.y), writer.pointer(self.sums)]
        return [*pointers, *expand, *depthwise, *project]

    def run(self, runs: Runs) -> None:
        for part in self.parts:
            part.run(runs)
        if self.sums is not None:
            runs[self.sums] = runs[self.y].view(self.batch, -1, self.c_out).sum(1).reshape(-1)


_NO_POINTWISE = [NULL] * 7 + [0] * 12


def _no_depthwise(first: Step) -> list[int]:
    """Its sizes say how the rows lie: as one image of one column."""
    assert isinstance(first, PointwiseConv)
    return [NULL, NULL, 1, first.c_out, first.rows, 1, first.rows, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1]


def _depthwise_fields(step: ImageStep, writer: Writer) -> list[int]:
    bias = None if step.bias is None else maps_apart(step.bias, step.c_out, step.c_in)
    pointers, channels = [writer.weight(), writer.constants.vector(bias)], min(step.c_in, step.c_out)
    images = [step.batch, channels, *step.size, *step.out, *step.window, CODES[step.activation]]
    return [*pointers, *images, step.c_out // channels, step.c_in // channels]


def maps_apart(rows: Tensor, channels: int, others: int) -> Tensor:
    """Rows for `channels`, the maps of each of `others` side by side, reordered: all first maps, then the second."""
    maps = channels // others if others else 0
    if maps < 2:
        return rows
    return rows.unflatten(0, (others, maps)).transpose(0, 1).flatten(0, 1)
