"""One axis after the other: k x 1 to r channels, then 1 x k (of a volume the first axis, then the other two).

W[o, c, ij] = sum_r B[o, r, j] A[r, c, i], a matrix decomposition, exact at full rank.
Source: Jaderberg et al. 2014, arXiv:1405.3866, section 2 (scheme 2); Tai et al. 2016, arXiv:1511.06067, section 3.
"""

from torch import Tensor

from separable.conversion.forms.form import Form, Shape, Stage, energies, split


class Axes(Form):
    name = "axis by axis"
    factors = ("grci", "gorj")

    def possible(self, shape: Shape) -> bool:
        return sum(taps > 1 for taps in shape.kernel) > 1 and shape.kernel[0] > 1

    def full_rank(self, shape: Shape) -> int:
        rest = shape.taps // shape.kernel[0]
        return min(shape.inputs * shape.kernel[0], shape.outputs * rest)

    def stages(self, shape: Shape, rank: int) -> tuple[Stage, ...]:
        g, inner = shape.groups, shape.groups * rank
        return (
            Stage("conv_first", g * shape.inputs, inner, g, (0,)),
            Stage("conv_rest", inner, g * shape.outputs, g, shape.axes[1:]),
        )

    def stage_weights(self, factors: list[Tensor]) -> list[Tensor]:
        return list(factors)

    def start(self, weight: Tensor, shape: Shape, rank: int) -> list[Tensor]:
        left, right = split(self._matrix(weight, shape), rank)
        a = left.mT.unflatten(2, (shape.inputs, -1))
        b = right.unflatten(2, (shape.outputs, -1)).transpose(1, 2)
        return [a.contiguous(), b.contiguous()]

    def energies(self, weight: Tensor, shape: Shape) -> Tensor:
        return energies(self._matrix(weight, shape))

    def _matrix(self, weight: Tensor, shape: Shape) -> Tensor:
        """[G, C*i, O*j]."""
        return self.fold(weight, shape).permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)
