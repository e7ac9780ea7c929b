"""Batch norms that may take the activation after them into the same pass; parameters and names are torch's own."""

import torch.nn.functional as F
from torch import Tensor, nn

from separable import functional
from separable.functional import arguments


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    activation: str | None = None  # always applied, for a norm whose activation stood beside it as a module

    def forward(self, input: Tensor, activation: str | None = None) -> Tensor:
        """[N, C, ...] -> [N, C, ...]: the norm, then `activation`."""
        activation = activation or self.activation
        if not self.training and self.running_mean is not None:  # nothing here decides by values: graphs are made of it
            held = (self.running_mean, self.running_var, self.weight, self.bias)
            return arguments.activate(F.batch_norm(input, *held, False, 0.0, self.eps), activation)
        if not self.training or self.momentum is None:  # a cumulative average counts its batches: torch's own does
            return arguments.activate(super().forward(input), activation)
        self._check_input_dim(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return functional.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=True,
            momentum=self.momentum,
            eps=self.eps,
            activation=activation,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation!r}" if self.activation else "")


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


def normalize(norm: nn.Module | None, x: Tensor, activation: str | None) -> Tensor:
    """norm(x), then the activation; in one pass where the norm is ours."""
    if isinstance(norm, _BatchNorm):
        return norm(x, activation)
    return arguments.activate(x if norm is None else norm(x), activation)
