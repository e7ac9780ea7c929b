"""Stride, padding, dilation and activation as users write them, turned into one normal form.

Padding leaves here as a tuple of (before, after) pairs, one for each spatial dimension, first dimension first.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.errors import InputError

Size = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]
Pairs = tuple[tuple[int, int], ...]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hard_swish": F.hardswish,
    "gelu": F.gelu,  # the erf form
}


def check_activation(name: str, value: str | None) -> None:
    if value is not None and value not in ACTIVATIONS:
        raise InputError(name, value, f"must be None or one of {', '.join(ACTIVATIONS)}")


def activate(x: Tensor, activation: str | None) -> Tensor:
    return x if activation is None else ACTIVATIONS[activation](x)


def per_dimension(name: str, value: Size, dims: int, least: int = 1) -> tuple[int, ...]:
    """An int for all dimensions, or one for each, as a tuple of `dims` ints of at least `least`."""
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims:
        raise InputError(name, value, f"must be one int or {dims} ints, one for each spatial dimension")
    for v in values:
        if isinstance(v, bool) or not isinstance(v, (int, torch.SymInt)):
            raise InputError(name, value, "must hold whole numbers")
        if v < least:
            raise InputError(name, value, f"must be at least {least} in each dimension")
    return values


def padding_pairs(
    padding: Padding,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pairs:
    """(before, after) for each dimension.

    "same" gives ceil(size / stride) outputs; the odd pixel goes after, which is TensorFlow's rule for every stride
    and torch's for stride 1. "causal" (1-D) puts all of it before, so that no output sees the future.
    """
    dims = len(size)
    reach = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * dims
        if padding == "causal":
            if dims != 1:
                raise InputError("padding", padding, f"exists for 1-D convolution only, and this one is {dims}-D")
            return ((reach[0], 0),)
        if padding == "same":
            totals = []
            for n, r, s in zip(size, reach, stride, strict=True):
                # stride 1 does not depend on the size: exported graphs stay free of shape arithmetic
                totals.append(r if s == 1 else torch.sym_max(((n + s - 1) // s - 1) * s + r + 1 - n, 0))
            return tuple((t // 2, t - t // 2) for t in totals)
        raise InputError("padding", padding, 'must be ints, pairs of ints, "valid", "same" or "causal"')
    return fixed_pairs(padding, dims)


def fixed_pairs(padding: int | Sequence[int] | Sequence[Sequence[int]], dims: int) -> Pairs:
    """The part of `padding_pairs` that needs no sizes: an int, one int a dimension, or one pair a dimension."""
    values = (padding,) * dims if isinstance(padding, int) else tuple(padding)
    if len(values) != dims:
        raise InputError("padding", padding, f"must be one int, {dims} ints or {dims} pairs (before, after)")
    pairs = []
    for v in values:
        pair = (v, v) if isinstance(v, int) else tuple(v)
        if len(pair) != 2 or any(isinstance(p, bool) or not isinstance(p, (int, torch.SymInt)) for p in pair):
            raise InputError("padding", padding, f"must be one int, {dims} ints or {dims} pairs (before, after)")
        if pair[0] < 0 or pair[1] < 0:
            raise InputError("padding", padding, "must not be negative")
        pairs.append(pair)
    return tuple(pairs)


def pad(x: Tensor, pairs: Pairs, mode: str = "zeros") -> Tensor:
    """Pad the spatial dimensions of x; `mode` is torch.nn.Conv2d's padding_mode."""
    flat = [side for pair in reversed(pairs) for side in pair]
    if not any(isinstance(side, torch.SymInt) or side for side in flat):
        return x
    return F.pad(x, flat, mode="constant" if mode == "zeros" else mode)


def check_impl(impl: str) -> None:
    if impl in ("native", "triton"):
        raise InputError("impl", impl, 'has no kernels in this version; use "auto" or "reference"')
    if impl not in ("auto", "reference"):
        raise InputError("impl", impl, 'must be "auto", "reference", "native" or "triton"')


def check_tensors(input: Tensor, dims: int, **others: Tensor | None) -> None:
    """The rules every convolution shares: the input's rank, floating point, one dtype, one device."""
    layout = "[N, C, " + ", ".join(["L"] if dims == 1 else ["D", "H", "W"][3 - dims :]) + "]"
    if input.dim() != dims + 2:
        hint = "; a single example becomes a batch with x.unsqueeze(0)" if input.dim() == dims + 1 else ""
        raise InputError(
            "input", f"tensor of shape {list(input.shape)}", f"must have {dims + 2} dimensions {layout}{hint}"
        )
    if not (input.is_floating_point() or input.is_complex()):
        raise InputError("input", f"tensor of {input.dtype}", "must be floating point; convert it with x.float()")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != input.device:
            raise InputError(name, f"tensor on {tensor.device}", f"must be on the input's device, {input.device}")
        # autocast casts both sides itself, so only there may they differ
        if tensor.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
            raise InputError(name, f"tensor of {tensor.dtype}", f"must have the input's dtype, {input.dtype}")


def check_bias(name: str, bias: Tensor | None, channels: int) -> None:
    if bias is not None and tuple(bias.shape) != (channels,):
        raise InputError(
            name, f"tensor of shape {list(bias.shape)}", f"must have shape [{channels}], one for each output channel"
        )


def check_fits(size: Sequence[int], kernel_size: Sequence[int], dilation: Sequence[int], pairs: Pairs) -> None:
    """Every output dimension must have at least one element."""
    for n, k, d, (before, after) in zip(size, kernel_size, dilation, pairs, strict=True):
        if n + before + after < d * (k - 1) + 1:
            raise InputError(
                "input",
                f"spatial size {list(size)}",
                f"padded by {list(pairs)} it is smaller than the kernel {list(kernel_size)} at dilation {list(dilation)}",
            )
