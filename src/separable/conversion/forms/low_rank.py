"""Fewer channels before or after a dense kernel: pointwise then k x k, k x k then pointwise, or in the middle of both.

Each is a matrix decomposition of the weight, nested and exact at full rank: an eigenvector more is a channel more.
Source: Jaderberg et al. 2014, arXiv:1405.3866; Zhang et al. 2015, arXiv:1411.4229, section 2; in the middle: Kim et al.
2016, arXiv:1511.06530, section 3 (Tucker-2).
"""

from torch import Tensor

from separable.conversion.forms.form import Form, Shape, Stage, energies, split


class PointwiseDense(Form):
    """W[o, c, k] = sum_r B[o, r, k] A[r, c]."""

    name = "pointwise, dense"
    factors = ("grc", "gork")

    def possible(self, shape: Shape) -> bool:
        return shape.taps > 1 and shape.inputs > 1

    def full_rank(self, shape: Shape) -> int:
        return min(shape.inputs, shape.outputs * shape.taps)

    def stages(self, shape: Shape, rank: int) -> tuple[Stage, ...]:
        g, inner = shape.groups, shape.groups * rank
        return (
            Stage("conv_pw", g * shape.inputs, inner, g, ()),
            Stage("conv", inner, g * shape.outputs, g, shape.axes),
        )

    def stage_weights(self, factors: list[Tensor]) -> list[Tensor]:
        return [factors[0].unsqueeze(3), factors[1]]

    def start(self, weight: Tensor, shape: Shape, rank: int) -> list[Tensor]:
        left, right = split(weight.transpose(1, 2).flatten(2), rank)  # [G, C, r], [G, r, O*K]
        return [left.mT.contiguous(), right.unflatten(2, (shape.outputs, -1)).transpose(1, 2).contiguous()]

    def energies(self, weight: Tensor, shape: Shape) -> Tensor:
        return energies(weight.transpose(1, 2).flatten(2))


class DensePointwise(Form):
    """W[o, c, k] = sum_r B[o, r] A[r, c, k]."""

    name = "dense, pointwise"
    factors = ("grck", "gor")

    def possible(self, shape: Shape) -> bool:
        return shape.taps > 1 and shape.outputs > 1

    def full_rank(self, shape: Shape) -> int:
        return min(shape.outputs, shape.inputs * shape.taps)

    def stages(self, shape: Shape, rank: int) -> tuple[Stage, ...]:
        g, inner = shape.groups, shape.groups * rank
        return (
            Stage("conv", g * shape.inputs, inner, g, shape.axes),
            Stage("conv_pw", inner, g * shape.outputs, g, ()),
        )

    def stage_weights(self, factors: list[Tensor]) -> list[Tensor]:
        return [factors[0], factors[1].unsqueeze(3)]

    def start(self, weight: Tensor, shape: Shape, rank: int) -> list[Tensor]:
        left, right = split(weight.flatten(2), rank)  # [G, O, r], [G, r, C*K]
        return [right.unflatten(2, (shape.inputs, -1)).contiguous(), left.contiguous()]

    def energies(self, weight: Tensor, shape: Shape) -> Tensor:
        return energies(weight.flatten(2))


class Tucker(Form):
    """W[o, c, k] = sum_ab B[o, b] core[b, a, k] A[a, c], as large a share of the inputs as of the outputs."""

    name = "pointwise, dense, pointwise"
    factors = ("gac", "gbak", "gob")

    def possible(self, shape: Shape) -> bool:
        return shape.taps > 1 and shape.inputs > 1 and shape.outputs > 1

    def full_rank(self, shape: Shape) -> int:
        return max(shape.inputs, shape.outputs)

    def _ranks(self, shape: Shape, rank: int) -> tuple[int, int]:
        whole = self.full_rank(shape)
        first, second = max(1, rank * shape.inputs // whole), max(1, rank * shape.outputs // whole)
        return min(first, second * shape.taps), min(second, first * shape.taps)  # more would be zeros

    def stages(self, shape: Shape, rank: int) -> tuple[Stage, ...]:
        g, (first, second) = shape.groups, self._ranks(shape, rank)
        return (
            Stage("conv_pw", g * shape.inputs, g * first, g, ()),
            Stage("conv", g * first, g * second, g, shape.axes),
            Stage("conv_pwl", g * second, g * shape.outputs, g, ()),
        )

    def stage_weights(self, factors: list[Tensor]) -> list[Tensor]:
        return [factors[0].unsqueeze(3), factors[1], factors[2].unsqueeze(3)]

    def start(self, weight: Tensor, shape: Shape, rank: int) -> list[Tensor]:
        """Alternately the best inputs for the outputs kept and the best outputs for the inputs kept."""
        first, second = self._ranks(shape, rank)
        a = split(weight.transpose(1, 2).flatten(2), first)[0].mT  # [G, a, C]
        for _ in range(3):
            less = (weight.transpose(2, 3) @ a.mT.unsqueeze(1)).flatten(2)  # [G, O, K*a]
            b = split(less, second)[0]  # [G, O, b]
            kept = (b.mT @ weight.flatten(2)).unflatten(2, weight.shape[2:])  # [G, b, C, K]
            a = split(kept.transpose(1, 2).flatten(2), first)[0].mT
        core = (kept.transpose(2, 3) @ a.mT.unsqueeze(1)).transpose(2, 3)  # [G, b, a, K]
        return [a.contiguous(), core.contiguous(), b.contiguous()]

    def losses(self, weight: Tensor, shape: Shape, ranks: list[int]) -> list[float]:
        """Of the two bases that nest, without the rounds of `start`: a little above what it leaves."""
        whole = float(weight.square().sum())
        if whole == 0:  # nothing to lose
            return [0.0] * len(ranks)
        a = split(weight.transpose(1, 2).flatten(2), shape.inputs)[0]  # [G, C, C] or less
        b = split(weight.flatten(2), shape.outputs)[0]
        core = (b.mT @ weight.flatten(2)).unflatten(2, weight.shape[2:])  # [G, b, C, K]
        energy = (core.transpose(2, 3) @ a.unsqueeze(1)).square().sum((0, 2))  # [b, a]
        kept = energy.cumsum(0).cumsum(1)
        found = []
        for rank in ranks:
            first, second = self._ranks(shape, rank)
            at = min(second, kept.shape[0]) - 1, min(first, kept.shape[1]) - 1
            found.append(max(0.0, 1 - float(kept[at]) / whole))
        return found
