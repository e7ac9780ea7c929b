"""Batch norms that may take the activation after them into the same pass; parameters and names are torch's own."""

from typing import Any

from torch import Tensor, nn

from separable import functional
from separable.functional import arguments


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor, activation: str | None = None) -> Tensor:
        """[N, C, ...] -> [N, C, ...]: the norm, then `activation`."""
        if not is_computed(self):
            return arguments.activate(super().forward(input), activation)
        return compute(self, input, activation)


def is_computed(norm: Any) -> bool:
    """Whether `compute` knows how: a cumulative average counts its batches, and that torch's own does."""
    return norm.momentum is not None or not _takes_the_batch(norm)


def compute(norm: Any, input: Tensor, activation: str | None) -> Tensor:
    """What torch's batch norm `norm` gives and keeps, then the activation, natively where that wins."""
    batch = _takes_the_batch(norm)
    if batch and isinstance(input, Tensor):  # and not what stands for one, as torch.fx follows the network
        norm._check_input_dim(input)
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    keeps = norm.training or not batch
    return functional.batch_norm(
        input,
        norm.running_mean if keeps else None,
        norm.running_var if keeps else None,
        norm.weight,
        norm.bias,
        training=batch,
        momentum=norm.momentum or 0.0,
        eps=norm.eps,
        activation=activation,
    )


def _takes_the_batch(norm: Any) -> bool:
    """Whether it normalizes by the mean and variance of the batch."""
    return norm.training or norm.running_mean is None


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d with native training; see `BatchNorm2d`. Input [N, C, L] or [N, C]."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d whose training step is native where its input lies channels last.

    Called with an activation, it applies that in the same pass: forward and backward then move about half the memory,
    and of norm and activation together only the input is kept for backward.

    Shapes: input [N, C, H, W] -> [N, C, H, W].

    >>> import torch
    >>> BatchNorm2d(4)(torch.randn(2, 4, 5, 5), "relu").min() >= 0
    tensor(True)
    """


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d with native training; see `BatchNorm2d`. Input [N, C, D, H, W]."""


OURS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)


def normalize(norm: nn.Module | None, x: Tensor, activation: str | None) -> Tensor:
    """norm(x), then the activation; in one pass where the norm is ours."""
    if isinstance(norm, _BatchNorm):
        return norm(x, activation)
    return arguments.activate(x if norm is None else norm(x), activation)
