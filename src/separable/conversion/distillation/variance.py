"""The variance of each channel of what a teacher gives: the unit of squared errors, of outputs and of features."""

import torch
from torch import Tensor

_LEAST_SHARE = 1e-3  # of the mean variance of a map's channels: a channel that hardly varies cannot rule the loss


def channel_variance(values: list[Tensor], dim: int) -> Tensor:
    """Var(teacher_c) over all else, shaped to divide a batch."""
    moments = ChannelMoments()
    for value in values:
        moments.add(value, dim)
    return moments.variance()


class ChannelMoments:
    """Mean and variance of each channel, over batches."""

    def __init__(self) -> None:
        self.count, self.total, self.square = 0, torch.zeros(()), torch.zeros(())
        self.like, self.dim = torch.zeros(()), 0

    def add(self, value: Tensor, dim: int) -> None:
        others = [place for place in range(value.dim()) if place != dim]
        value = value.detach()
        self.like, self.dim, self.count = (
            value.new_zeros([1] * value.dim()),
            dim,
            self.count + value.numel() // value.shape[dim],
        )
        self.total = self.total + value.sum(others, dtype=torch.float64)
        self.square = self.square + value.double().square().sum(others)

    def variance(self) -> Tensor:
        """Shaped to divide a batch; a channel that never varies counts by its square, one of zeros by 1."""
        square = self.square / self.count
        variance = (square - (self.total / self.count).square()).clamp(min=0)
        if self.like.dim() > 2:
            variance = variance.clamp(min=float(_LEAST_SHARE * variance.mean()))
        variance = torch.where(variance > 1e-6 * square, variance, square)
        variance = torch.where(variance > 0, variance, torch.ones_like(variance))
        shape = [1] * self.like.dim()
        shape[self.dim] = -1
        return variance.to(self.like.dtype).view(shape)
