"""Stride, padding, dilation and activation as users write them, checked once and turned into one normal form.

Normal form: tuples of ints, one for each spatial dimension; padding as (before, after) pairs. Sizes may be symbolic, in
a graph captured for any size: nothing here decides on them what a captured graph would have to hold fixed.
Source of "same": tensorflow.org/api_docs/python/tf/nn, "Notes on padding", for every stride; torch's at stride 1.
"""

import functools
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

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


Arguments = ParamSpec("Arguments")


class Window(NamedTuple):
    """How a kernel moves over its input."""

    stride: tuple[int, ...]
    pairs: Pairs
    dilation: tuple[int, ...]


def seen_whole(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """A function that torch.fx's proxies and others of their kind are shown as one call, as torch's own are.

    They stand for tensors and are none, so that no argument could be checked inside.
    """

    @functools.wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        given = (*args, *kwargs.values())
        if has_torch_function(given) and any(_stands_for_tensor(value) for value in given):
            return handle_torch_function(called, given, *args, **kwargs)
        return function(*args, **kwargs)

    return called


def _stands_for_tensor(value: Any) -> bool:
    return hasattr(type(value), "__torch_function__") and not isinstance(value, Tensor)


def sizes(tensor: Tensor) -> torch.Size:
    """The shape as numbers, also while torch.jit traces, when `.shape` holds tensors that comparisons would freeze."""
    if not torch.jit.is_tracing():
        return tensor.shape
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return tensor.shape
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


def check_activation(name: str, value: str | None) -> None:
    if value is not None and not (isinstance(value, str) and value in ACTIVATIONS):
        raise InputError(name, value, f"must be None or one of {', '.join(ACTIVATIONS)}")


def activate(x: Tensor, activation: str | None) -> Tensor:
    return x if activation is None else ACTIVATIONS[activation](x)


def check_impl(impl: str, native: bool = False) -> None:
    """`native` says whether this operation has native kernels."""
    if impl == "triton" or (impl == "native" and not native):
        others = '"auto", "reference" or "native"' if native else '"auto" or "reference"'
        raise InputError("impl", impl, f"has no kernels in this version; use {others}")
    if impl not in ("auto", "reference", "native"):
        raise InputError("impl", impl, 'must be "auto", "reference", "native" or "triton"')


def per_dimension(name: str, value: Size, dims: int, least: int = 1) -> tuple[int, ...]:
    """An int for all dimensions, or one for each, as a tuple of `dims` ints of at least `least`."""
    values: tuple = (value,) * dims if is_whole(value) else _as_tuple(value)
    if len(values) != dims or not all(is_whole(v) for v in values):
        some = "one int" if dims == 1 else f"one int or {dims} ints, one for each spatial dimension"
        raise InputError(name, _shown(value), f"must be {some}")
    for v in values:
        if v < least:
            raise InputError(name, value, f"must be at least {least} in each dimension")
    return tuple(_plain(v) for v in values)


def window(size: Sequence[int], kernel_size: Sequence[int], stride: Size, padding: Padding, dilation: Size) -> Window:
    """Stride, padding and dilation over an input of spatial `size`, where at least one output must come of it."""
    dims = len(size)
    strides, dilations = per_dimension("stride", stride, dims), per_dimension("dilation", dilation, dims)
    pairs = padding_pairs(padding, size, kernel_size, strides, dilations)
    for n, k, d, (before, after) in zip(size, kernel_size, dilations, pairs, strict=True):
        if certain(n < 1):
            raise InputError("input", f"spatial size {list(size)}", "must be at least 1 in each dimension")
        if certain(n + before + after < d * (k - 1) + 1):
            rule = f"padded by {list(pairs)} it is smaller than the kernel {list(kernel_size)}"
            dilated = f" at dilation {list(dilations)}" if max(dilations) > 1 else ""
            raise InputError("input", f"spatial size {list(size)}", rule + dilated)
    return Window(strides, pairs, dilations)


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
    if not isinstance(padding, str):
        return fixed_pairs(padding, dims)
    reach = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    if padding == "valid":
        return ((0, 0),) * dims
    if padding == "causal":
        if dims != 1:
            raise InputError("padding", repr(padding), f"exists for 1-D convolution only, and this one is {dims}-D")
        return ((reach[0], 0),)
    if padding == "same":
        totals = [_same_total(n, r, s) for n, r, s in zip(size, reach, stride, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    words = '"valid", "same" or "causal"' if dims == 1 else '"valid" or "same"'
    raise InputError("padding", repr(padding), f"must be ints, pairs of ints, {words}")


def fixed_pairs(padding: int | Sequence[int] | Sequence[Sequence[int]], dims: int) -> Pairs:
    """The part of `padding_pairs` that needs no sizes: an int, one int a dimension, or one pair a dimension."""
    values = (padding,) * dims if is_whole(padding) else _as_tuple(padding)
    pairs = [(v, v) if is_whole(v) else _as_tuple(v) for v in values]
    if len(pairs) != dims or not all(len(pair) == 2 and all(is_whole(side) for side in pair) for pair in pairs):
        several = "one int or one pair, ((before, after),)"
        several = several if dims == 1 else f"one int, {dims} ints or {dims} pairs (before, after)"
        raise InputError("padding", _shown(padding), f"must be {several}")
    for before, after in pairs:
        if before < 0 or after < 0:
            raise InputError("padding", padding, "must not be negative")
    return tuple((_plain(before), _plain(after)) for before, after in pairs)


def pad(x: Tensor, pairs: Pairs, mode: str = "zeros") -> Tensor:
    """Pad the spatial dimensions of x [N, C, ...]; `mode` is torch.nn.Conv2d's padding_mode."""
    flat = [side for pair in reversed(pairs) for side in pair]
    if all(certain(side == 0) for side in flat):
        return x
    most = {"reflect": -1, "circular": 0}.get(mode)  # beyond the input's size; the other modes can go on for ever
    if most is not None and any(certain(s > n + most) for p, n in zip(pairs, x.shape[2:], strict=True) for s in p):
        rule = f"{mode} can pad by at most {'one less than ' if most else ''}the input's size {list(x.shape[2:])}"
        raise InputError("padding", list(pairs), rule)
    return F.pad(x, flat, mode="constant" if mode == "zeros" else mode)


@seen_whole
def pad_ahead(
    input: Tensor,
    padding: Padding,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    mode: str,
) -> Tensor:
    """The input as a convolution that pads in `mode` reads it."""
    check_tensors(input, len(kernel_size))
    return pad(input, padding_pairs(padding, input.shape[2:], kernel_size, stride, dilation), mode)


def certain(condition: Any) -> bool:
    """True where a condition on sizes holds whatever the free sizes of a captured graph turn out to be."""
    if isinstance(condition, Tensor):  # of a size in a trace, which is a tensor and may differ in the next call
        return False
    if isinstance(condition, bool) and not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import, and in eager not needed

    return statically_known_true(condition)


def is_whole(value: Any) -> bool:
    """An int of Python, numpy or a captured graph; bool is a mistake here, not a number."""
    return isinstance(value, (int, torch.SymInt, Integral)) and not isinstance(value, bool)


def _same_total(n: int, reach: int, stride: int) -> int:
    """All the padding of one dimension under "same"."""
    if stride == 1:  # does not depend on n: captured graphs stay free of shape arithmetic
        return reach
    total = ((n + stride - 1) // stride - 1) * stride + reach + 1 - n
    if reach + 1 >= stride:  # else negative where the stride jumps pixels
        return total
    return total.clamp(min=0) if isinstance(total, Tensor) else torch.sym_max(total, 0)


def _as_tuple(value: Any) -> tuple:
    """The parts of a sequence; anything else, a string among it, has none and is refused by its length."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, torch.SymInt)) else int(value)  # numpy's ints would not be JSON


def _shown(value: Any) -> Any:
    return repr(value) if isinstance(value, str) else value


def wrong_shape(name: str, tensor: Tensor, rule: str) -> InputError:
    return InputError(name, f"tensor of shape {list(sizes(tensor))}", rule)


def check_tensors(input: Tensor, dims: int, **others: Tensor | None) -> None:
    """The rules every convolution shares: tensors, the input's rank, floating point, one dtype, one device."""
    for name, tensor in {"input": input, **others}.items():
        if not isinstance(tensor, Tensor) and (tensor is not None or name == "input"):
            raise InputError(name, f"a {type(tensor).__name__}", "must be a torch.Tensor")
    if input.dim() != dims + 2:
        layout = "[N, C, " + ", ".join(["L"] if dims == 1 else ["D", "H", "W"][3 - dims :]) + "]"
        hint = "; a single example becomes a batch with x.unsqueeze(0)" if input.dim() == dims + 1 else ""
        raise wrong_shape("input", input, f"must have {dims + 2} dimensions {layout}{hint}")
    if sizes(input)[1] == 0:
        raise wrong_shape("input", input, "must have at least one channel")
    if not input.is_floating_point():
        raise InputError("input", f"tensor of {input.dtype}", "must be floating point; convert it with x.float()")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != input.device:
            raise InputError(name, f"tensor on {tensor.device}", f"must be on the input's device, {input.device}")
        if tensor.dtype != input.dtype and not _cast_by_autocast(tensor, input):
            raise InputError(name, f"tensor of {tensor.dtype}", f"must have the input's dtype, {input.dtype}")


def check_kernel(name: str, weight: Tensor, dims: int, layout: str) -> None:
    """A weight of the right rank whose kernel and filters are not empty."""
    if weight is None:
        raise InputError(name, None, "must be a torch.Tensor")
    if weight.dim() != dims + 2:
        raise wrong_shape(name, weight, f"must have {dims + 2} dimensions, {layout}")
    if 0 in sizes(weight):
        raise wrong_shape(name, weight, "must have no empty dimension")


def check_bias(name: str, bias: Tensor | None, channels: int) -> None:
    if bias is not None and tuple(sizes(bias)) != (channels,):
        raise wrong_shape(name, bias, f"must have shape [{channels}], one for each output channel")


def _cast_by_autocast(*tensors: Tensor) -> bool:
    """Autocast brings mixed dtypes together before it convolves, all but float64, which it leaves alone."""
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return False
    return all(t.is_floating_point() and t.dtype != torch.float64 for t in tensors)
