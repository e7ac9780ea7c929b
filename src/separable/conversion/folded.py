"""A convolution together with the batch norm that reads it: one linear layer, to be fitted as one.

In evaluation mode a norm multiplies each channel by a constant and adds one. A fit is of what the norm gives; then the
norm takes the new layer's own statistics, its gain and its shift such that it gives the fitted values: in evaluation as
fitted, in training with statistics that are those of the batches.
"""

from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion.patches import grouped_weight


def folded_weight(conv: Any, norm: Any | None) -> tuple[Tensor, Tensor]:
    """W [G, O, C, K] and b [G*O] of the convolution and its norm as one, float64."""
    weight = grouped_weight(conv)
    bias = torch.zeros(conv.out_channels, dtype=torch.float64) if conv.bias is None else conv.bias.detach().double()
    if norm is None:
        return weight, bias
    gain = scale_of(norm)
    shift = 0.0 if norm.bias is None else norm.bias.detach().double()
    weight = weight * gain.view(*weight.shape[:2], 1, 1)
    return weight, (bias - norm.running_mean.double()) * gain + shift


def scale_of(norm: Any) -> Tensor:
    """What a batch norm multiplies each channel by in eval mode: [C], float64."""
    gain = 1.0 if norm.weight is None else norm.weight.detach().double()
    return gain / (norm.running_var.double() + norm.eps).sqrt()


def set_norm(norm: nn.Module, mean: Tensor, variance: Tensor, constant: Tensor) -> None:
    """Let a norm with gain and shift give x + constant for inputs of this mean and variance [C]."""
    kept: Any = norm
    kept.running_mean.copy_(mean)
    kept.running_var.copy_(variance)
    kept.weight.data.copy_((variance + kept.eps).sqrt())
    kept.bias.data.copy_(mean + constant)
