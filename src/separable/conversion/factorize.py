"""Closed form: a dense convolution as a sum of separable ones, exact at full rank.

Depthwise first, the filters of input channel c form a matrix W[:, c] in R^(C_out x K) of rank r: its singular vectors
are r spatial filters for that channel and how each output mixes them. Pointwise first, W[o] in R^(C_in x K) is split
the same way for each output channel o. The rank is the separable layer's depth multiplier.
Source: Guo et al. 2018, "Network Decoupling", arXiv:1808.05517, section 3.2 (both orders); Haase and Amthor 2020,
arXiv:2003.13549, section 3 (the intra-kernel correlation that pointwise first lives on).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion.moments import Moments
from separable.errors import InputError
from separable.functional.separable_conv import check_order
from separable.layers import SeparableConv1d, SeparableConv2d, SeparableConv3d

SEPARABLE = {nn.Conv1d: SeparableConv1d, nn.Conv2d: SeparableConv2d, nn.Conv3d: SeparableConv3d}


def factorize(conv: Any, order: str = "depthwise_first", rank: int | None = None, moments: Moments | None = None):
    """The separable layer of this order and rank nearest to `conv`; exact at full rank, which is also the default.

    Nearest in weights, or, given the moments of its input, in outputs as far as one channel's own patches tell.

    Args:
        conv: torch.nn.Conv1d, 2d or 3d with one group and a kernel of more than one tap.
        order: "depthwise_first" or "pointwise_first".
        rank: the depth multiplier; at most `full_rank(conv, order)`.
        moments: of what the layer reads, as `survey` gives them.

    Returns:
        SeparableConv1d, 2d or 3d with the same stride, padding, dilation, bias, dtype, device and training flag.

    Raises:
        InputError: a layer that cannot be separated, with the reason, or a rank outside 1 ... full rank.

    >>> conv = torch.nn.Conv2d(8, 16, 3, padding=1)
    >>> x = torch.randn(1, 8, 6, 6)
    >>> torch.allclose(factorize(conv)(x), conv(x), atol=1e-5)
    True
    >>> factorize(conv, rank=2).conv_dw.weight.shape
    torch.Size([16, 1, 3, 3])
    """
    reason = why_not(conv)
    if reason:
        raise InputError("conv", repr(conv), f"cannot be made separable: {reason}")
    check_order(order)
    full = full_rank(conv, order)
    rank = full if rank is None else rank
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= full:
        raise InputError("rank", rank, f"must be a whole number from 1 to {full}, the full rank of this layer")
    dw, pw = halves(conv.weight, order, rank, moments)
    return assemble(conv, order, dw, pw)


def why_not(conv: Any) -> str | None:
    """Why a layer has no separable form here, in words; None if it has one."""
    if type(conv) not in SEPARABLE:
        return f"it is a {type(conv).__name__}, not torch.nn.Conv1d, Conv2d or Conv3d itself"
    if conv.groups == conv.in_channels and conv.groups > 1:
        return "it is depthwise already"
    if conv.groups > 1:
        return f"its {conv.groups} groups already split the channels"
    if math.prod(conv.kernel_size) == 1:
        return "it is pointwise (one tap)"
    return None


def full_rank(conv: Any, order: str) -> int:
    """The rank at which the closed form is exact."""
    mixed = conv.out_channels if order == "depthwise_first" else conv.in_channels
    return min(mixed, math.prod(conv.kernel_size))


def halves(weight: Tensor, order: str, rank: int, moments: Moments | None = None) -> tuple[Tensor, Tensor]:
    """dw and pw, float64, in the shapes of least_squares.py, from weight [C_out, C_in, k...]."""
    w = weight.detach().double().flatten(2)  # [C_out, C_in, K]
    if order == "depthwise_first":
        stack, metric = w.transpose(0, 1), None if moments is None else _own_grams(moments)  # [C_in, C_out, K]
        left, right = _split(stack, rank, metric)
        return right, left.transpose(0, 1).contiguous()  # [C, r, K], [C_out, C, r]
    if moments is None:
        left, right = _split(w, rank, None)
    else:
        mixing, metric = _channel_and_tap_grams(moments)
        root, inverse = _root(mixing)
        left, right = _split(root @ w, rank, metric)
        left = inverse @ left
    return right, left.transpose(1, 2).contiguous()  # [C_out, r, K], [C_out, r, C]


def assemble(conv: Any, order: str, dw: Tensor, pw: Tensor):
    """The separable layer that stands in for `conv`, holding these halves and conv's bias."""
    layer: Any = nn.utils.skip_init(  # all its weights are written below: no random number is drawn
        SEPARABLE[type(conv)],
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
        depth_multiplier=dw.shape[1],
        order=order,
    )
    write_halves(layer, dw, pw)
    if conv.bias is not None:
        (layer.conv_pw if order == "depthwise_first" else layer.conv_dw).bias.data.copy_(conv.bias)
    layer.requires_grad_(conv.weight.requires_grad)
    return layer.train(conv.training)


def write_halves(layer, dw: Tensor, pw: Tensor) -> None:
    """Put halves in the shapes of least_squares.py into a separable layer."""
    layer.conv_dw.weight.data.copy_(dw.reshape(layer.conv_dw.weight.shape))
    layer.conv_pw.weight.data.copy_(pw.reshape(layer.conv_pw.weight.shape))


def read_halves(layer) -> tuple[Tensor, Tensor]:
    """The inverse of `write_halves`, float64."""
    rank, channels = layer.depth_multiplier, (layer.in_channels, layer.out_channels)
    dw, pw = layer.conv_dw.weight.detach().double(), layer.conv_pw.weight.detach().double()
    if layer.order == "depthwise_first":
        return dw.reshape(channels[0], rank, -1), pw.reshape(channels[1], channels[0], rank)
    return dw.reshape(channels[1], rank, -1), pw.reshape(channels[1], rank, channels[0])


def bias_of(layer: Any) -> nn.Parameter | None:
    """The bias of a separable or dense layer: it belongs to the half that comes last."""
    if not hasattr(layer, "conv_dw"):
        return layer.bias
    return layer.conv_pw.bias if layer.order == "depthwise_first" else layer.conv_dw.bias


def _split(stack: Tensor, rank: int, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    """stack [B, n, K] ~ left [B, n, r] @ right [B, r, K], nearest in the norm tr(E metric E')."""
    root, inverse = (None, None) if metric is None else _root(metric)
    u, s, v = torch.linalg.svd(stack if root is None else stack @ root, full_matrices=False)
    s = s[:, :rank].sqrt()
    left, right = u[:, :, :rank] * s.unsqueeze(1), v[:, :rank] * s.unsqueeze(2)
    return left, right if inverse is None else right @ inverse


def _root(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse, of [..., n, n], kept away from singular."""
    values, vectors = torch.linalg.eigh(metric)
    largest = values.amax(-1, keepdim=True)
    floor = torch.where(largest > 0, 1e-6 * largest, 1.0)  # a dead channel has no metric of its own
    values = values.clamp_min(0).add(floor).sqrt().unsqueeze(-2)
    return (vectors * values) @ vectors.mT, (vectors / values) @ vectors.mT


def _own_grams(m: Moments) -> Tensor:
    """[C, K, K]: each input channel's patches with themselves."""
    return torch.diagonal(m.gram.view(m.channels, m.taps, m.channels, m.taps), dim1=0, dim2=2).permute(2, 0, 1)


def _channel_and_tap_grams(m: Moments) -> tuple[Tensor, Tensor]:
    """[C, C] and [K, K] whose Kronecker product stands for the gram of the patches."""
    gram = m.gram.view(m.channels, m.taps, m.channels, m.taps)
    return torch.einsum("ckdk->cd", gram) / m.taps, torch.einsum("ckcl->kl", gram) / m.channels
