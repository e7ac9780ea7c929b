"""A convolution as one linear map of its patches: plain or transposed, of any dimensions, stride, dilation and groups.

y[o] = sum_ck W[o, c, k] x[c, k] + b[o] for each output position and group: o an output channel of the group, c an input
channel of it, k a tap. A transposed convolution is that of an input spread out with zeros, the taps in reverse.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from separable import layers
from separable.functional import arguments

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DEPTHWISE = (layers.DepthwiseConv1d, layers.DepthwiseConv2d, layers.DepthwiseConv3d)
DEPTHWISE_TRANSPOSE = (
    layers.DepthwiseConvTranspose1d,
    layers.DepthwiseConvTranspose2d,
    layers.DepthwiseConvTranspose3d,
)
Index = tuple[Tensor, ...] | None


def groups_of(conv: Any) -> int:
    return getattr(conv, "groups", min(conv.in_channels, conv.out_channels))  # none of a depthwise layer's


def is_transposed(conv: Any) -> bool:
    return isinstance(conv, (*TRANSPOSED, *DEPTHWISE_TRANSPOSE))


def grouped_weight(conv: Any) -> Tensor:
    """W [G, O, C, K], float64, from the weight of a convolution of C*G input channels and O*G output channels."""
    weight = conv.weight.detach().double()
    if is_transposed(conv):  # [C*G, O, k...]
        weight = weight.unflatten(0, (groups_of(conv), -1)).transpose(1, 2).flip(tuple(range(3, weight.dim() + 1)))
        return weight.flatten(3)
    return weight.unflatten(0, (groups_of(conv), -1)).flatten(3)


def write_weight(conv: Any, weight: Tensor) -> None:
    """The inverse of `grouped_weight`, into the convolution."""
    weight = weight.unflatten(3, conv.kernel_size)
    if is_transposed(conv):
        weight = weight.flip(tuple(range(3, weight.dim()))).transpose(1, 2)
    conv.weight.data.copy_(weight.flatten(0, 1).reshape(conv.weight.shape))


def patch_rows(conv: Any, x: Tensor, index: Index) -> Tensor:
    """The patches [P, G, C, K] of the input x [N, C*G, ...] at output positions, in float32 at least."""
    windows = _unfold(conv, x)
    windows = windows.flatten(0, x.dim() - 2) if index is None else windows[index]
    rows = windows.flatten(2).unflatten(1, (groups_of(conv), -1))
    return rows.to(torch.promote_types(x.dtype, torch.float32))


def output_rows(output: Tensor, index: Index) -> Tensor:
    """The values [P, C_out] of an output [N, C_out, out...] at positions, in float32 at least."""
    values = output.movedim(1, -1)
    values = values.flatten(0, -2) if index is None else values[index]
    return values.to(torch.promote_types(values.dtype, torch.float32))


def choose(shape: tuple[int, ...], wanted: int, generator: torch.Generator) -> Index:
    """An index into [N, out...] of `wanted` random positions of an output [N, C_out, ...], in order; None for all."""
    places = (shape[0], *shape[2:])
    total = math.prod(places)
    if total <= wanted:
        return None
    return torch.unravel_index(torch.randperm(total, generator=generator)[:wanted].sort().values, places)


def _unfold(conv: Any, x: Tensor) -> Tensor:
    """Each output position's patch, a view [N, out..., C*G, k...] of the padded input x [N, C*G, ...]."""
    dims, strides = len(conv.kernel_size), conv.stride
    if is_transposed(conv):
        x, strides = _spread(conv, x), (1,) * dims
    else:
        pairs = arguments.padding_pairs(conv.padding, x.shape[2:], conv.kernel_size, conv.stride, conv.dilation)
        x = arguments.pad(x, pairs, conv.padding_mode)
    for i, (k, s, d) in enumerate(zip(conv.kernel_size, strides, conv.dilation, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    return x.movedim(1, 1 + dims)


def _spread(conv: Any, x: Tensor) -> Tensor:
    """What a plain convolution of stride 1 reads where a transposed one reads x: zeros between, before and after."""
    size = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], conv.stride, strict=True)]
    spread = x.new_zeros((*x.shape[:2], *size))
    every = (slice(None), slice(None), *(slice(None, None, s) for s in conv.stride))
    spread[every] = x
    pads = []
    for k, d, p, extra in zip(conv.kernel_size, conv.dilation, conv.padding, conv.output_padding, strict=True):
        border = d * (k - 1) - p
        pads += [(border, border + extra)]
    return F.pad(spread, [n for pair in reversed(pads) for n in pair])
