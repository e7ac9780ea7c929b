"""Pointwise, depthwise, pointwise: the canonical polyadic decomposition, MobileNetV2's bottleneck without activations.

W[o, c, k] = sum_r B[o, r] D[r, k] A[r, c]: r inner channels, each mixed of the inputs, filtered, and given
to the outputs.
Source: Lebedev et al. 2015, arXiv:1412.6553, section 3; its degeneracy: Phan et al. 2020, arXiv:2008.05441.
"""

import math

import torch
from torch import Tensor

from separable.conversion.forms.form import Form, Shape, Stage

ROUNDS = 30
_TRIED = 4  # ranks that losses are interpolated from
_LARGE, _TRIED_OF_LARGE, _TRIAL_ROUNDS = 1 << 16, 3, 6  # numbers in a weight; its ranks, and rounds of each


class Polyadic(Form):
    name = "polyadic"
    factors = ("grc", "grk", "gor")

    def possible(self, shape: Shape) -> bool:
        return shape.taps > 1 and shape.inputs > 1

    def useful_rank(self, shape: Shape) -> int:
        """Beyond a few times the channels, forms with a closed solution are as good and are had at once."""
        return min(self.full_rank(shape), round(3 * (shape.inputs * shape.outputs) ** 0.5))

    def full_rank(self, shape: Shape) -> int:
        sizes = sorted((shape.inputs, shape.outputs, shape.taps))
        return sizes[0] * sizes[1]

    def stages(self, shape: Shape, rank: int) -> tuple[Stage, ...]:
        g, inner = shape.groups, shape.groups * rank
        return (
            Stage("conv_pw", g * shape.inputs, inner, g, ()),
            Stage("conv_dw", inner, inner, inner, shape.axes),
            Stage("conv_pwl", inner, g * shape.outputs, g, ()),
        )

    def stage_weights(self, factors: list[Tensor]) -> list[Tensor]:
        a, d, b = factors
        return [a.unsqueeze(3), d.flatten(0, 1)[:, None, None], b.unsqueeze(3)]

    def start(self, weight: Tensor, shape: Shape, rank: int) -> list[Tensor]:
        """Alternating least squares from random directions."""
        return alternate(weight, self._random(weight, shape, rank), ROUNDS)

    def _random(self, weight: Tensor, shape: Shape, rank: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        sizes = {"g": shape.groups, "r": rank, "c": shape.inputs, "k": shape.taps, "o": shape.outputs}
        return [
            torch.randn([sizes[letter] for letter in letters], generator=generator, dtype=torch.float64).to(weight)
            for letters in self.factors
        ]

    def losses(self, weight: Tensor, shape: Shape, ranks: list[int]) -> list[float]:
        """Of a few ranks by a few rounds, between them by interpolation: the logarithm of the loss is smooth."""
        whole = float(weight.square().sum())
        if whole == 0:  # nothing to lose
            return [0.0] * len(ranks)
        many, rounds = (_TRIED, ROUNDS) if weight.numel() <= _LARGE else (_TRIED_OF_LARGE, _TRIAL_ROUNDS)
        tried = sorted({ranks[round(i * (len(ranks) - 1) / (many - 1))] for i in range(many)})
        found = []
        for rank in tried:
            start = self._random(weight, shape, rank)
            missing = weight - self.compose(alternate(weight, start, rounds))
            found.append(max(math.log(max(float(missing.square().sum()) / whole, 1e-12)), -30.0))
        return [math.exp(_between(rank, tried, found)) for rank in ranks]


def _between(x: float, xs: list[int], ys: list[float]) -> float:
    """Piecewise linear."""
    for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return ys[-1]


def alternate(weight: Tensor, factors: list[Tensor], rounds: int) -> list[Tensor]:
    """Least squares of one factor after the other; a proximal term that fades keeps components from diverging."""
    a, d, b = factors
    for i in range(rounds):
        pull = 1e-2 * 1e-4 ** (i / max(1, rounds - 1))  # 1e-2 -> 1e-6 of the mean diagonal
        by_output = torch.einsum("gock,gor->grck", weight, b)  # the largest contraction serves two steps
        a = _solve(torch.einsum("grck,grk->grc", by_output, d), _gram(d.mT) * _gram(b), a, pull)
        d = _solve(torch.einsum("grck,grc->grk", by_output, a), _gram(a.mT) * _gram(b), d, pull)
        by_input = torch.einsum("gock,grc->grok", weight, a)
        right = torch.einsum("grok,grk->gro", by_input, d)
        b = _solve(right, _gram(a.mT) * _gram(d.mT), b.mT, pull).mT
        a, d, b = _balanced(a, d, b)
    return [a, d, b]


def _gram(columns: Tensor) -> Tensor:
    return columns.mT @ columns


def _solve(right: Tensor, normal: Tensor, now: Tensor, pull: float) -> Tensor:
    """argmin of the quadratic and of pull * mean diagonal * |X - now|²: X [G, r, n]."""
    weight = pull * normal.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-30)
    system = (normal + weight * torch.eye(normal.shape[-1]).to(normal)).double()
    factor, failed = torch.linalg.cholesky_ex(system)
    found = torch.cholesky_solve((right + weight * now).double(), factor).to(now)
    return torch.where((failed != 0)[..., None, None], now, found)


def _balanced(a: Tensor, d: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same components with factors of equal norm."""
    norms = torch.stack([a.norm(dim=2), d.norm(dim=2), b.norm(dim=1)]).clamp_min(1e-30)  # [3, G, r]
    scale = norms.log().mean(0).exp() / norms
    return a * scale[0].unsqueeze(2), d * scale[1].unsqueeze(2), b * scale[2].unsqueeze(1)
