"""Chains of a pointwise, a depthwise and a pointwise step, each perhaps missing: csrc/separable_conv.h.

No call becomes one; `fuse` makes them of other steps.
"""

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
    def reads(self) -> list[Memory]:
        inside = [part.y for part in self.parts]
        return [self.x, *(m for part in self.parts for m in part.reads if m not in inside)]

    def weights(self) -> list[Tensor]:
        return [weight for part in self.parts for weight in part.weights()]

    def fields(self, writer: Writer) -> list[int]:
        first, deep, last = self.parts[0], self.depthwise, self.parts[-1]
        writer.inside = {part.y for part in self.parts[:-1]}
        expand = first.fields(writer) if isinstance(first, PointwiseConv) else _NO_POINTWISE
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
    return [NULL, NULL, 1, first.c_out, first.rows, 1, first.rows, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0]


def _depthwise_fields(step: ImageStep, writer: Writer) -> list[int]:
    pointers = [writer.weight(), writer.constants.vector(step.bias)]
    return [*pointers, step.batch, step.c_in, *step.size, *step.out, *step.window, CODES[step.activation]]
