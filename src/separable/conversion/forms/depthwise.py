"""A depthwise half and a pointwise half, in either order: the separable layer with a depth multiplier.

Depthwise first, the filters of input channel c form a matrix W[:, c] in R^(O x K) of rank r: its singular vectors are r
filters of that channel and how each output mixes them. Pointwise first, W[o] in R^(C x K) is split the same way.
Source: Guo et al. 2018, "Network Decoupling", arXiv:1808.05517, section 3.2; Haase and Amthor 2020, arXiv:2003.13549.
"""

from torch import Tensor

from separable.conversion.forms.form import Form, Shape, Stage, energies, split


class DepthwiseFirst(Form):
    """W[o, c, k] = sum_m P[o, c, m] D[c, m, k]."""

    name = "depthwise first"
    factors = ("gcmk", "gocm")

    def possible(self, shape: Shape) -> bool:
        return shape.taps > 1 and shape.inputs > 1 and shape.outputs > 1

    def full_rank(self, shape: Shape) -> int:
        return min(shape.outputs, shape.taps)

    def stages(self, shape: Shape, rank: int) -> tuple[Stage, ...]:
        g, channels = shape.groups, shape.groups * shape.inputs
        return (
            Stage("conv_dw", channels, channels * rank, channels, shape.axes),
            Stage("conv_pw", channels * rank, g * shape.outputs, g, ()),
        )

    def stage_weights(self, factors: list[Tensor]) -> list[Tensor]:
        return [factors[0].flatten(0, 1).unsqueeze(2), factors[1].flatten(2).unsqueeze(3)]

    def start(self, weight: Tensor, shape: Shape, rank: int) -> list[Tensor]:
        left, right = split(weight.transpose(1, 2), rank)  # of [G, C, O, K]
        return [right.contiguous(), left.transpose(1, 2).contiguous()]

    def energies(self, weight: Tensor, shape: Shape) -> Tensor:
        return energies(weight.transpose(1, 2)).sum(1)


class PointwiseFirst(Form):
    """W[o, c, k] = sum_m D[o, m, k] P[o, m, c]."""

    name = "pointwise first"
    factors = ("gomc", "gomk")

    def possible(self, shape: Shape) -> bool:
        return shape.taps > 1 and shape.inputs > 1 and shape.outputs > 1

    def full_rank(self, shape: Shape) -> int:
        return min(shape.inputs, shape.taps)

    def stages(self, shape: Shape, rank: int) -> tuple[Stage, ...]:
        g, outputs = shape.groups, shape.groups * shape.outputs
        return (
            Stage("conv_pw", g * shape.inputs, outputs * rank, g, ()),
            Stage("conv_dw", outputs * rank, outputs, outputs, shape.axes),
        )

    def stage_weights(self, factors: list[Tensor]) -> list[Tensor]:
        return [factors[0].flatten(1, 2).unsqueeze(3), factors[1].flatten(0, 1).unsqueeze(1)]

    def start(self, weight: Tensor, shape: Shape, rank: int) -> list[Tensor]:
        left, right = split(weight, rank)  # [G, O, C, r], [G, O, r, K]
        return [left.mT.contiguous(), right.contiguous()]

    def energies(self, weight: Tensor, shape: Shape) -> Tensor:
        return energies(weight).sum(1)
