"""torch.ops.separable.depthwise_conv*: schema, shapes, derivatives, vmap and FLOPs of the native depthwise convolution.

Three operators: `depthwise_conv` has derivatives; `depthwise_conv_inference` has none and fuses the activation;
`depthwise_conv_backward` gives all three gradients in one pass. Padding is flat, (before, after) for each dimension.
The result lies in memory as the input does: channels last where neighbouring channels are neighbours, else contiguous.
Without the library the same operators run the reference, so that a saved graph that names them still loads.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from separable import _native
from separable.functional import arguments

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_ACTIVATIONS = (None, *arguments.ACTIVATIONS)  # the numbers of csrc/kernels.h
MAX_KERNEL = 255  # taps in each dimension, csrc/depthwise_conv.h

Ints = Sequence[int]


def number_of(activation: str | None) -> int:
    """The number by which the kernels know an activation."""
    return _ACTIVATIONS.index(activation)


def is_channels_last(x: Tensor) -> bool:
    """True where the channels of one place of x [N, C, ...] lie together; such an input gives such a result."""
    return x.stride(1) == 1 and x.shape[1] > 1


def strides(shape: Ints, channels_last: bool) -> tuple[int, ...]:
    """Of a dense tensor [N, C, ...] in one of the two layouts."""
    order = [1, *range(len(shape) - 1, 1, -1), 0] if channels_last else range(len(shape) - 1, -1, -1)
    found, step = [0] * len(shape), 1
    for dim in order:
        found[dim] = step
        step = step * shape[dim]
    return tuple(found)


def result_shape(x: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> tuple[int, ...]:
    """[N, F, ...] for input [N, C, ...] and weight [F, C/groups, k...]; kernel sizes are fixed in a captured graph."""
    kernel = [int(k) for k in weight.shape[2:]]
    before, after = padding[::2], padding[1::2]
    size = [
        (x.shape[2 + i] + before[i] + after[i] - dilation[i] * (k - 1) - 1) // stride[i] + 1
        for i, k in enumerate(kernel)
    ]
    return (x.shape[0], weight.shape[0], *size)


def _groups(x: Tensor, weight: Tensor) -> int:
    return x.shape[1] // weight.shape[1]


def _padded(x: Tensor, padding: Ints) -> Tensor:
    pairs = tuple(zip(padding[::2], padding[1::2], strict=True))
    return arguments.pad(x, pairs)


def _in_layout(y: Tensor, channels_last: bool) -> Tensor:
    """y's values in memory that is its own and lies exactly as the kernels write it."""
    return torch.empty_strided(y.shape, strides(y.shape, channels_last), dtype=y.dtype, device=y.device).copy_(y)


def _reference(x, weight, bias, stride, padding, dilation) -> Tensor:
    return _CONV[x.dim() - 2](_padded(x, padding), weight, bias, stride, 0, dilation, _groups(x, weight))


def _forward(x, weight, bias, stride, padding, dilation):
    return _in_layout(_reference(x, weight, bias, stride, padding, dilation), is_channels_last(x))


def _inference(x, weight, bias, stride, padding, dilation, activation):
    y = arguments.activate(_reference(x, weight, bias, stride, padding, dilation), _ACTIVATIONS[activation])
    return _in_layout(y, is_channels_last(x))


def _fake(x, weight, bias, stride, padding, dilation, activation=0):
    shape = result_shape(x, weight, stride, padding, dilation)
    return x.new_empty_strided(shape, strides(shape, is_channels_last(x)))


def _aten_gradients(grad, x, weight, stride, padding, dilation, mask) -> list[Any]:
    """The three gradients by torch's own operator, which is differentiable again; None where `mask` says no."""
    zeros, bias = [0] * len(stride), [weight.shape[0]]
    padded = _padded(x, padding)
    window = (list(stride), zeros, list(dilation), False, zeros)
    gx, *others = torch.ops.aten.convolution_backward(grad, padded, weight, bias, *window, _groups(x, weight), mask)
    if mask[0] and padded is not x:
        for dim in range(2, x.dim()):
            gx = gx.narrow(dim, padding[2 * dim - 4], x.shape[dim])
    return [gx, *others]


def _backward(grad, x, weight, stride, padding, dilation, *mask):
    gx, gw, gb = _aten_gradients(grad, x, weight, stride, padding, dilation, mask)
    return (
        _in_layout(gx, is_channels_last(x)) if mask[0] else x.new_empty(0),
        gw.contiguous() if mask[1] else x.new_empty(0),
        gb if mask[2] else x.new_empty(0),
    )


def _fake_backward(grad, x, weight, stride, padding, dilation, *mask):
    return (
        x.new_empty_strided(x.shape, strides(x.shape, is_channels_last(x))) if mask[0] else x.new_empty(0),
        weight.new_empty(weight.shape) if mask[1] else x.new_empty(0),
        weight.new_empty(weight.shape[0]) if mask[2] else x.new_empty(0),
    )


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, *ctx.window = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _gradients(ctx, grad):
    x, weight = ctx.saved_tensors
    mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
    found = torch.ops.separable.depthwise_conv_backward(grad, x, weight, *ctx.window, *mask)
    gradients = [g if needed else None for g, needed in zip(found, mask, strict=True)]
    return (*gradients, None, None, None)


def _keep_for_second(ctx, inputs, output) -> None:
    grad, x, weight, *ctx.window, ctx.need_x, ctx.need_weight, ctx.need_bias = inputs
    ctx.save_for_backward(grad, x, weight)


def _second_gradients(ctx, ggx, ggw, ggb):
    """Of the gradients, which are linear in each of grad, x and weight; by torch's own operators, so to any order."""
    grad, x, weight = ctx.saved_tensors
    window: tuple[list[int], list[int], list[int]] = ctx.window
    of_grad = of_x = of_weight = None
    if ctx.need_x:  # gx is linear in grad and weight
        of_grad = _reference(ggx, weight, None, *window)
        of_weight = _aten_gradients(grad, ggx, weight, *window, mask=[False, True, False])[1]
    if ctx.need_weight:  # gw is linear in grad and x
        more = _reference(x, ggw, None, *window)
        of_grad = more if of_grad is None else of_grad + more
        of_x = _aten_gradients(grad, x, ggw, *window, mask=[True, False, False])[0]
    if ctx.need_bias:  # gb is the sum of grad
        more = ggb.reshape(1, -1, *[1] * (grad.dim() - 2)).expand_as(grad)
        of_grad = more if of_grad is None else of_grad + more
    return (of_grad, of_x, of_weight, *[None] * 6)


_library = _native.operators
_WINDOW = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
for _name, _more in (("depthwise_conv", ""), ("depthwise_conv_inference", ", int activation")):
    _arguments = f"Tensor input, Tensor weight, Tensor? bias, {_WINDOW}{_more}"
    _library.define(f"{_name}({_arguments}) -> Tensor", tags=_TAGS)
    torch.library.register_fake(f"separable::{_name}", _fake, lib=_library)
_arguments = f"Tensor grad, Tensor input, Tensor weight, {_WINDOW}, bool need_input, bool need_weight, bool need_bias"
_library.define(f"depthwise_conv_backward({_arguments}) -> (Tensor, Tensor, Tensor)", tags=_TAGS)
torch.library.register_fake("separable::depthwise_conv_backward", _fake_backward, lib=_library)
for _name, _implementation in (
    ("depthwise_conv", _forward),
    ("depthwise_conv_inference", _inference),
    ("depthwise_conv_backward", _backward),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
torch.library.register_autograd("separable::depthwise_conv", _gradients, setup_context=_keep, lib=_library)
torch.library.register_autograd(
    "separable::depthwise_conv_backward", _second_gradients, setup_context=_keep_for_second, lib=_library
)


@register_flop_formula([torch.ops.separable.depthwise_conv, torch.ops.separable.depthwise_conv_inference])
def _flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])


@register_flop_formula(torch.ops.separable.depthwise_conv_backward)
def _backward_flops(grad_shape, x_shape, weight_shape, stride, padding, dilation, *mask, out_shape=None) -> int:
    return 2 * math.prod(grad_shape) * math.prod(weight_shape[1:]) * (bool(mask[0]) + bool(mask[1]))
