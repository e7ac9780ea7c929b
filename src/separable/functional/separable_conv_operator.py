"""torch.ops.separable.separable_conv*: schema, shapes, derivatives and FLOPs of the native fused separable convolution.

The depthwise and the pointwise half in one pass, in one and two dimensions, depth multiplier 1.
`separable_conv_inference` has no derivatives; `separable_conv` keeps its input and weights alone, and its backward,
`separable_conv_backward`, makes what stood between the halves again, some images at a time. Padding is flat, (before,
after) for each dimension; activations are numbers (csrc/kernels.h). The result lies in memory as the input does.
Without the library the same operators run torch's own convolutions.
Source of recomputing: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, section 3.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from separable import _native
from separable.functional import arguments
from separable.functional.batch_norm_operator import dense_last
from separable.functional.depthwise_conv_operator import is_channels_last, result_shape, strides

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_ACTIVATIONS = (None, *arguments.ACTIVATIONS)


def _mix(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    conv = torch.nn.functional.conv1d if x.dim() == 3 else torch.nn.functional.conv2d
    return conv(x, weight, bias)


def _torch(x, dw, pw, dw_bias, pw_bias, stride, padding, dilation, pointwise_first, inner, last):
    """The same in torch's own operations, in memory that lies exactly as the kernels write it."""
    depthwise = torch.ops.separable.depthwise_conv_inference
    if pointwise_first:
        mixed = arguments.activate(_mix(x, pw, pw_bias), _ACTIVATIONS[inner])
        y = depthwise(mixed, dw, dw_bias, stride, padding, dilation, last)
    else:
        y = _mix(depthwise(x, dw, dw_bias, stride, padding, dilation, inner), pw, pw_bias)
        y = arguments.activate(y, _ACTIVATIONS[last])
    return torch.empty_strided(y.shape, strides(y.shape, is_channels_last(x)), dtype=y.dtype, device=y.device).copy_(y)


def _fake(x, dw, pw, dw_bias, pw_bias, stride, padding, dilation, pointwise_first, inner, last=0):
    batch, _, *size = result_shape(x, dw, stride, padding, dilation)
    shape = (batch, pw.shape[0], *size)
    return x.new_empty_strided(shape, strides(shape, is_channels_last(x)))


def _kept(x, dw, pw, dw_bias, pw_bias, stride, padding, dilation, pointwise_first, inner):
    """The value; where the library is, natively, for this calls an operator that has native kernels."""
    operator = torch.ops.separable.separable_conv_inference
    return operator(x, dw, pw, dw_bias, pw_bias, stride, padding, dilation, pointwise_first, inner, 0)


def reference(x, dw, pw, dw_bias, pw_bias, stride, padding, dilation, pointwise_first, inner) -> Tensor:
    """In torch's own operations, which have derivatives of any order."""
    conv = torch.nn.functional.conv1d if x.dim() == 3 else torch.nn.functional.conv2d
    pairs = tuple(zip(padding[::2], padding[1::2], strict=True))
    if pointwise_first:
        x = arguments.activate(_mix(x, pw, pw_bias), _ACTIVATIONS[inner])
        return conv(arguments.pad(x, pairs), dw, dw_bias, stride, 0, dilation, dw.shape[0])
    x = conv(arguments.pad(x, pairs), dw, dw_bias, stride, 0, dilation, dw.shape[0])
    return _mix(arguments.activate(x, _ACTIVATIONS[inner]), pw, pw_bias)


def _backward(grad, x, dw, pw, dw_bias, pw_bias, *rest):
    *how, need_input = rest
    with torch.enable_grad():
        zeros = [t.new_zeros(t.shape[0]) if b is None else b for t, b in ((dw, dw_bias), (pw, pw_bias))]
        leaves = [t.detach().requires_grad_() for t in (x, dw, pw, *zeros)]
        gx, *others = torch.autograd.grad(reference(*leaves, *how), leaves, grad)
    kept = torch.empty_strided(x.shape, strides(x.shape, True), dtype=x.dtype, device=x.device).copy_(gx)
    return (kept if need_input else x.new_empty(0), *(g.contiguous() for g in others))


def _fake_backward(grad, x, dw, pw, dw_bias, pw_bias, *rest):
    gx = x.new_empty_strided(x.shape, strides(x.shape, True)) if rest[-1] else x.new_empty(0)
    return gx, dw.new_empty(dw.shape), pw.new_empty(pw.shape), dw.new_empty(dw.shape[0]), pw.new_empty(pw.shape[0])


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.stride, ctx.padding, ctx.dilation, ctx.pointwise_first, ctx.inner = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, grad):
    tensors = ctx.saved_tensors  # input, two weights, two biases
    how = (ctx.stride, ctx.padding, ctx.dilation, ctx.pointwise_first, ctx.inner)
    if torch.is_grad_enabled():  # a derivative of these gradients will be asked for: torch's operators have them
        asked = [t for t in tensors if t is not None and t.requires_grad]
        made = iter(torch.autograd.grad(reference(*tensors, *how), asked, grad, create_graph=True))  # type: ignore[call-arg]
        found: list[Any] = [next(made) if t is not None and t.requires_grad else None for t in tensors]
        return (*found, *[None] * 5)
    x, dw, pw, *biases = tensors
    operator, needed = torch.ops.separable.separable_conv_backward, ctx.needs_input_grad
    halves = (dw.contiguous(), pw.contiguous(), *biases)
    found = list(operator(dense_last(grad), dense_last(x), *halves, *how, needed[0]))
    return (*(g if wanted else None for g, wanted in zip(found, needed, strict=False)), *[None] * 5)


_library = _native.operators
_HALVES = "Tensor dw_weight, Tensor pw_weight, Tensor? dw_bias, Tensor? pw_bias"
_HOW = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool pointwise_first, int inner_activation"
for _name, _arguments, _implementation, _shapes in (
    ("separable_conv_inference", f"Tensor input, {_HALVES}, {_HOW}, int activation", _torch, _fake),
    ("separable_conv", f"Tensor input, {_HALVES}, {_HOW}", _kept, _fake),
    (
        "separable_conv_backward",
        f"Tensor grad, Tensor input, {_HALVES}, {_HOW}, bool need_input",
        _backward,
        _fake_backward,
    ),
):
    _result = "(Tensor, Tensor, Tensor, Tensor, Tensor)" if _name.endswith("backward") else "Tensor"
    _library.define(f"{_name}({_arguments}) -> {_result}", tags=_TAGS)
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"separable::{_name}", _shapes, lib=_library)
torch.library.register_autograd("separable::separable_conv", _gradients, setup_context=_keep, lib=_library)


@register_flop_formula([torch.ops.separable.separable_conv, torch.ops.separable.separable_conv_inference])
def _flops(x_shape, dw_shape, pw_shape, *args, out_shape=None, **kwargs) -> int:
    pointwise_first = args[5] if len(args) > 5 else kwargs["pointwise_first"]
    taps, outputs = math.prod(dw_shape[2:]), math.prod(out_shape[2:])
    mixed = math.prod(x_shape[2:]) if pointwise_first else outputs  # pixels that the pointwise half computes
    return 2 * x_shape[0] * (dw_shape[0] * taps * outputs + pw_shape[0] * pw_shape[1] * mixed)


@register_flop_formula(torch.ops.separable.separable_conv_backward)
def _backward_flops(grad_shape, x_shape, dw_shape, pw_shape, *args, out_shape=None, **kwargs) -> int:
    """Both gradients of each half, and its first half once more."""
    pointwise_first = args[5]
    taps, outputs = math.prod(dw_shape[2:]), math.prod(grad_shape[2:])
    mixed = math.prod(x_shape[2:]) if pointwise_first else outputs
    filtering, mixing = dw_shape[0] * taps * outputs, pw_shape[0] * pw_shape[1] * mixed
    return 2 * x_shape[0] * (2 * (filtering + mixing) + (mixing if pointwise_first else filtering))
