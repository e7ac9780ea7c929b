"""What data says about the input of one convolution: how its channels vary together, and how its taps do.

The second moments of patches [C*K, C*K] are taken as the Kronecker product of a covariance of channels [C, C] and a
correlation of taps [K, K]. So a kernel of 512 taps over 1,024 channels needs no matrix of half a million rows, and a
weight is brought into the norm of its outputs by two small matrices: |W C^(1/2) T^(1/2)|² ~ E|W x|².
Source: Martens and Grosse 2015, arXiv:1503.05671, and Grosse and Martens 2016, arXiv:1602.01407, section 3 (the same
factorisation of a convolution's second moments, there for curvature).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from separable.conversion.forms import Form, Shape
from separable.conversion.patches import choose, output_rows, patch_rows

PIXELS = 8_192  # input positions that a channel covariance is taken of, or so many for each channel:
_PIXELS_A_CHANNEL = 32
_TAP_ROWS = 1 << 19  # of one channel's taps, that a tap correlation is taken of
_LARGE = 1 << 18  # numbers in a weight whose decompositions are made in float32: their sums are the slow part
_FLOOR = 1e-6  # of the largest eigenvalue: directions that data does not excite keep some weight


@dataclass
class Moments:
    """channels [G, C, C]: covariance of a group's channels. taps [K, K]: correlation of taps, its mean diagonal 1."""

    channels: Tensor
    taps: Tensor


class Accumulator:
    """Sums over batches, in float64, of a sample of positions of each."""

    def __init__(self, conv: Any, examples: int):
        self.conv, self.shape, self.examples = conv, Shape.of(conv), max(1, examples)
        self.generator = torch.Generator().manual_seed(0)
        self.pixels = max(PIXELS, _PIXELS_A_CHANNEL * self.shape.inputs)
        self.patches = max(64, _TAP_ROWS // (self.shape.groups * self.shape.inputs))
        self.count = 0
        self.total: Any = 0.0
        self.square: Any = 0.0
        self.taps: Any = 0.0

    def add(self, x: Tensor, made: tuple[int, ...]) -> None:
        """One call's input [N, C*G, ...] and the spatial size of its output."""
        share = len(x) / self.examples
        index = choose(x.shape, math.ceil(self.pixels * share), self.generator)
        pixels = output_rows(x, index)
        if self.count == 0:
            self.shift = pixels.mean(0)  # sums of squares then do not cancel
        centred = (pixels - self.shift).unflatten(1, (self.shape.groups, -1)).transpose(0, 1)  # [G, P, C]
        self.total = self.total + centred.sum(1).double()
        self.square = self.square + (centred.mT @ centred).double()
        self.count += len(pixels)
        if self.shape.taps > 1:
            wanted = math.ceil(self.patches * share)
            some = x[torch.randperm(len(x), generator=self.generator)[: math.ceil(4 * wanted / math.prod(made))]]
            some = some.float() - self.shift.view(-1, *[1] * (x.dim() - 2))
            rows = patch_rows(self.conv, some, choose((len(some), 1, *made), wanted, self.generator))
            rows = rows.flatten(0, 2)  # [P*G*C, K]
            self.taps = self.taps + (rows.mT @ rows).double()

    def moments(self) -> Moments:
        mean = self.total / self.count
        channels = self.square / self.count - mean.unsqueeze(2) * mean.unsqueeze(1)
        if self.shape.taps == 1:
            return Moments(channels, torch.ones(1, 1, dtype=torch.float64))
        scale = self.taps.diagonal().mean()
        taps = self.taps / scale if scale > 0 else torch.eye(self.shape.taps, dtype=torch.float64)
        return Moments(channels, taps)


class Whitening:
    """Brings weights into the norm of their outputs, and factors back out of it."""

    def __init__(self, moments: Moments, importance: Tensor):
        """importance [G, O]: how much the squared error of each output matters."""
        self.moments = moments
        self.outputs = importance.sqrt().clamp_min(_FLOOR * float(importance.max().sqrt()))
        self._roots: dict[str, tuple[Tensor, Tensor]] = {}

    def target(self, form: Form, weight: Tensor, shape: Shape) -> Tensor:
        """[G, O, C, K] in the nearest norm in which the factors of `form` keep their structure."""
        for letter in form.dense_letters[1:]:
            weight = _apply(self._scales(form, letter, shape)[0], form.fold(weight, shape), form.dense_letters, letter)
            weight = weight.flatten(3)
        return weight.float() if weight.numel() >= _LARGE else weight

    def back(self, form: Form, factors: list[Tensor], shape: Shape) -> list[Tensor]:
        """The factors of a target as factors of the weight."""
        return self._factors(form, factors, shape, inverse=True)

    def into(self, form: Form, factors: list[Tensor], shape: Shape) -> list[Tensor]:
        """The factors of the weight as factors of a target."""
        return self._factors(form, factors, shape, inverse=False)

    def _factors(self, form: Form, factors: list[Tensor], shape: Shape, inverse: bool) -> list[Tensor]:
        found = list(factors)
        for letter in form.dense_letters[1:]:
            holder = next(i for i, letters in enumerate(form.factors) if letter in letters)
            scale = self._scales(form, letter, shape)[inverse].to(found[holder])
            found[holder] = _apply(scale, found[holder], form.factors[holder], letter)
        return found

    def inputs(self, form: Form, matrix: Tensor, shape: Shape, *, inverse: bool = False) -> Tensor:
        """[G, n, C*K], its second index left alone, multiplied along the others as a target is, or the other way."""
        tensor = form.fold(matrix.unflatten(2, (shape.inputs, -1)), shape)
        for letter in form.dense_letters[2:]:
            tensor = _apply(self._scales(form, letter, shape)[inverse].to(tensor), tensor, form.dense_letters, letter)
        return tensor.flatten(2)

    def _scales(self, form: Form, letter: str, shape: Shape) -> tuple[Tensor, Tensor]:
        """A matrix [G, n, n] or a diagonal [G, n] for one index, and its inverse."""
        if letter == "o":
            return self.outputs, 1 / self.outputs
        if sum(letter in letters for letters in form.factors) == 1:
            return self._root(letter, shape)
        variance = self.moments.channels.diagonal(dim1=1, dim2=2)  # both factors hold the index: it cannot be mixed
        scale = variance.clamp_min(_FLOOR * float(variance.max())).clamp_min(1e-30).sqrt()
        return scale, 1 / scale

    def _root(self, letter: str, shape: Shape) -> tuple[Tensor, Tensor]:
        if letter not in self._roots:
            self._roots[letter] = root(self._metric(letter, shape))
        return self._roots[letter]

    def _metric(self, letter: str, shape: Shape) -> Tensor:
        if letter == "c":
            return self.moments.channels
        if letter == "k":
            return self.moments.taps.unsqueeze(0)
        split = self.moments.taps.unflatten(1, (shape.kernel[0], -1)).unflatten(0, (shape.kernel[0], -1))
        if letter == "i":
            return torch.einsum("ijkj->ik", split).unsqueeze(0) / split.shape[1]
        return torch.einsum("ijil->jl", split).unsqueeze(0) / split.shape[0]


def root(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse, of [..., n, n], kept away from singular."""
    values, vectors = torch.linalg.eigh(metric)
    largest = values.amax(-1, keepdim=True)
    floor = torch.where(largest > 0, _FLOOR * largest, 1.0)  # what never varies has no metric of its own
    values = values.clamp_min(0).add(floor).sqrt().unsqueeze(-2)
    return (vectors * values) @ vectors.mT, (vectors / values) @ vectors.mT


def _apply(scale: Tensor, tensor: Tensor, letters: str, letter: str) -> Tensor:
    """`tensor`, of the indices `letters`, multiplied along one of them by [G, n, n] or [G, n]."""
    axis = letters.index(letter)
    moved = tensor.movedim(axis, -1)
    lead = [1] * (moved.dim() - 2)
    if scale.dim() == 2:
        return (moved * scale.view(len(scale), *lead, -1)).movedim(-1, axis)
    flat = moved.flatten(1, -2) if moved.dim() > 2 else moved.unsqueeze(1)
    return (flat @ scale).view(moved.shape).movedim(-1, axis)
