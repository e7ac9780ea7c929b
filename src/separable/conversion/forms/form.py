"""What a form is: a dense convolution's weight written as a product of smaller ones, run as a chain of convolutions.

W[g, o, c, k] = sum over the inner letters of the product of the factors, whose indices are letters: g the group, o and
c its output and input channels, k the taps (or i and j: those of the first axis and of the others), all else inner.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Of a convolution's weight: groups, output and input channels of a group, taps along each axis."""

    groups: int
    outputs: int
    inputs: int
    kernel: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(len(self.kernel)))

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @classmethod
    def of(cls, conv: Any) -> "Shape":
        inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        return cls(conv.groups, outputs, inputs, tuple(conv.kernel_size))


@dataclass(frozen=True)
class Stage:
    """One convolution of the chain. axes: the spatial axes that its kernel covers; along the others it has one tap."""

    name: str
    inputs: int  # channels of all groups
    outputs: int
    groups: int
    axes: tuple[int, ...]

    def weights(self, shape: Shape) -> int:
        return self.outputs * (self.inputs // self.groups) * math.prod(shape.kernel[axis] for axis in self.axes)


class Form:
    """A way to write a weight. A subclass is one file here; `factors` are the letters of each factor, in order."""

    name: str
    factors: tuple[str, ...]

    def possible(self, shape: Shape) -> bool:
        """Whether the form differs from the dense layer and from other forms at this shape."""
        raise NotImplementedError

    def full_rank(self, shape: Shape) -> int:
        """The rank at which the form can be exact."""
        raise NotImplementedError

    def useful_rank(self, shape: Shape) -> int:
        """The largest rank that is worth a look."""
        return self.full_rank(shape)

    def stages(self, shape: Shape, rank: int) -> tuple[Stage, ...]:
        """The chain, in the order in which it runs; its s-th convolution holds the s-th factor."""
        raise NotImplementedError

    def stage_weights(self, factors: list[Tensor]) -> list[Tensor]:
        """The factors in the shapes [G, O, C, K] of their convolutions."""
        raise NotImplementedError

    def start(self, weight: Tensor, shape: Shape, rank: int) -> list[Tensor]:
        """Factors near `weight` [G, O, C, K], in its dtype: the closed form where there is one."""
        raise NotImplementedError

    def losses(self, weight: Tensor, shape: Shape, ranks: list[int]) -> list[float]:
        """What `start` leaves of |weight|² at each rank, as a share; where forms nest, one decomposition tells all."""
        energies = self.energies(weight, shape)
        whole = float(weight.square().sum())
        kept = energies.sum(0).cumsum(0)  # of the groups together
        if whole == 0:  # nothing to lose
            return [0.0] * len(ranks)
        return [max(0.0, 1 - float(kept[min(rank, len(kept)) - 1]) / whole) for rank in ranks]

    def energies(self, weight: Tensor, shape: Shape) -> Tensor:
        """|component|² of each rank in turn [G, r], for forms whose decompositions nest."""
        raise NotImplementedError

    @property
    def dense_letters(self) -> str:
        return "gocij" if any("i" in letters for letters in self.factors) else "gock"

    def fold(self, weight: Tensor, shape: Shape) -> Tensor:
        """[G, O, C, K], its taps split in two where the factors split them."""
        return weight if self.dense_letters == "gock" else weight.unflatten(3, (shape.kernel[0], -1))

    def compose(self, factors: list[Tensor]) -> Tensor:
        """The dense weight [G, O, C, K] that the factors amount to."""
        return torch.einsum(",".join(self.factors) + "->" + self.dense_letters, *factors).flatten(3)


def split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """matrix [..., n, m] ~ left [..., n, r] @ right [..., r, m], nearest in the Frobenius norm, left orthonormal.

    By the eigenvectors of the smaller side's products, which serve every rank.
    """
    n, m = matrix.shape[-2:]
    if n <= m:
        _, vectors = torch.linalg.eigh(matrix @ matrix.mT)
        left = vectors.flip(-1)[..., :rank]
        return left, left.mT @ matrix
    _, vectors = torch.linalg.eigh(matrix.mT @ matrix)
    right = vectors.flip(-1)[..., :rank].mT
    left, rest = torch.linalg.qr(matrix @ right.mT)
    return left, rest @ right


def energies(matrix: Tensor) -> Tensor:
    """The squared singular values [..., min(n, m)] of a matrix [..., n, m], the largest first."""
    n, m = matrix.shape[-2:]
    return torch.linalg.eigvalsh(matrix @ matrix.mT if n <= m else matrix.mT @ matrix).flip(-1).clamp_min(0)
