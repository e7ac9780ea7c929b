"""Batch norm as part of the convolution before it, for inference: what it scales and adds becomes weight and bias.

Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2 (folding for inference).
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from separable.errors import InputError


@torch.no_grad()
def fold_after(conv: Any, norm: nn.Module) -> nn.Module:
    """Put the batch norm that follows `conv` into its weight and bias; gives the identity that takes its place.

    Args:
        conv: with a weight [C, ...] whose first dimension is its output channels, and a bias or none.
        norm: of C channels, with running statistics.

    Raises:
        InputError: `norm` is no batch norm with statistics of its own.
    """
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise InputError("norm", type(norm).__name__, "must be a batch norm that keeps running statistics")
    scale = (norm.running_var + norm.eps).rsqrt()  # [C]
    scale = scale if norm.weight is None else scale * norm.weight
    offset = -norm.running_mean * scale if norm.bias is None else norm.bias - norm.running_mean * scale
    conv.weight.mul_(scale.view(-1, *[1] * (conv.weight.dim() - 1)))
    conv.bias = nn.Parameter(offset if conv.bias is None else offset + scale * conv.bias)
    return nn.Identity()


def fold_inside(layer: Any) -> None:
    """Fold the norms of one of our separable layers, depthwise first, into its halves, in place."""
    if layer.inner_norm is not None:
        fold_after(layer.conv_dw, layer.inner_norm)
        layer.inner_norm = None
    if layer.norm is not None:
        fold_after(layer.conv_pw, layer.norm)
        layer.norm = None
