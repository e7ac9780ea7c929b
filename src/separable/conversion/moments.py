"""What data says about one convolution: second moments of its input patches and of the outputs it should give.

A convolution is linear in its patches, y = W x + b with x in R^(C*K), K the number of taps. All that N images say
about a least-squares fit stands in means of x x', y x' and y²: their size follows the layer, never the data.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from separable.functional import arguments

PATCHES = 65_536  # enough for a few hundred unknowns; neighbouring patches say nearly the same
PATCHES_PER_UNKNOWN = 24

Index = tuple[Tensor, ...] | None


@dataclass
class Moments:
    """Means over output positions, in float64; centred where the fit has an intercept.

    gram [C*K, C*K]: patches with patches. cross [C_out, C*K]: targets with patches. energy [C_out]: targets squared.
    patch_mean [C*K], target_mean [C_out]: what was subtracted; zeros without an intercept.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    patch_mean: Tensor
    target_mean: Tensor
    channels: int

    @property
    def taps(self) -> int:
        return self.gram.shape[0] // self.channels

    def errors(self, weight: Tensor) -> Tensor:
        """Mean squared error of each output under the dense weight [C_out, C, K]: float64 [C_out]."""
        w = weight.double().flatten(1)
        return (self.energy - 2 * (w * self.cross).sum(1) + ((w @ self.gram) * w).sum(1)).clamp_min(0)

    def intercept(self, weight: Tensor) -> Tensor:
        """The bias [C_out] that goes with `weight`."""
        return self.target_mean - weight.double().flatten(1) @ self.patch_mean

    def outputs(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [C_out] of W x, for moments with an intercept."""
        w = weight.double().flatten(1)
        return w @ self.patch_mean, ((w @ self.gram) * w).sum(1).clamp_min(0)


class Positions:
    """Which output positions are looked at: all, or some random ones in each call; the same ones in every pass."""

    def __init__(self, conv, examples: int):
        """conv: the layer. examples: how many are expected in all, to share the patches out."""
        self.generator = torch.Generator().manual_seed(0)
        unknowns = conv.in_channels * math.prod(conv.kernel_size)
        self.per_example = max(1, max(PATCHES, PATCHES_PER_UNKNOWN * unknowns) // examples)

    def choose(self, output: Tensor) -> Index:
        """An index into [N, out...] for the next output [N, C_out, out...]; None for all."""
        shape = (output.shape[0], *output.shape[2:])
        total, wanted = math.prod(shape), self.per_example * shape[0]
        if total <= wanted:
            return None
        chosen = torch.randperm(total, generator=self.generator)[:wanted].to(output.device)
        return torch.unravel_index(chosen, shape)


def rows(output: Tensor, index: Index) -> Tensor:
    """The values [P, C_out] of an output [N, C_out, out...] at positions, in float32 at least."""
    values = output.movedim(1, -1)
    values = values.flatten(0, -2) if index is None else values[index]
    return values.to(torch.promote_types(values.dtype, torch.float32))


def patch_rows(conv, x: Tensor, index: Index) -> Tensor:
    """The patches [P, C*K] of the input x [N, C, ...] at output positions, in float32 at least."""
    windows = unfold(conv, x)
    windows = windows.flatten(0, x.dim() - 2) if index is None else windows[index]
    return windows.flatten(1).to(torch.promote_types(x.dtype, torch.float32))


class Accumulator:
    """Sums moments batch by batch; products in the precision of the rows, sums in float64."""

    def __init__(self, channels: int):
        self.channels, self.count = channels, 0

    def add(self, patches: Tensor, targets: Tensor) -> None:
        """patches [P, C*K] that a layer reads, targets [P, C_out] that it should give."""
        if self.count == 0:
            self.shift = patches.mean(0), targets.mean(0)  # sums of squares then do not cancel
            self.sums = [torch.zeros((), dtype=torch.float64, device=patches.device)] * 5
        p, t = patches - self.shift[0], targets - self.shift[1]
        new = (p.T @ p, t.T @ p, (t * t).sum(0), p.sum(0), t.sum(0))
        self.sums = [a + b.double() for a, b in zip(self.sums, new, strict=True)]
        self.count += len(p)

    def moments(self, intercept: bool) -> Moments:
        gram, cross, energy, p, t = (s / self.count for s in self.sums)
        gram, cross, energy = gram - torch.outer(p, p), cross - torch.outer(t, p), energy - t * t
        p, t = p + self.shift[0].double(), t + self.shift[1].double()
        if not intercept:
            gram, cross, energy = gram + torch.outer(p, p), cross + torch.outer(t, p), energy + t * t
            p, t = torch.zeros_like(p), torch.zeros_like(t)
        return Moments(gram, cross, energy, p, t, self.channels)


def unfold(conv, x: Tensor) -> Tensor:
    """Each output position's patch, a view [N, out..., C, k...] of the padded input x [N, C, ...]."""
    dims = len(conv.kernel_size)
    pairs = arguments.padding_pairs(conv.padding, x.shape[2:], conv.kernel_size, conv.stride, conv.dilation)
    x = arguments.pad(x, pairs, conv.padding_mode)
    for i, (k, s, d) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    return x.movedim(1, 1 + dims)
