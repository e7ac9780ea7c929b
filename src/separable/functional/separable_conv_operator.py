"""torch.ops.separable.separable_conv_inference: schema, shapes and FLOPs of the native fused separable convolution.

The depthwise and the pointwise half in one pass, without derivatives: inference in one and two dimensions, depth
multiplier 1. Padding is flat, (before, after) for each dimension; activations are numbers (csrc/kernels.h). The result
lies in memory as the input does. Without the library the same operator runs torch's own convolutions.
"""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from separable import _native
from separable.functional import arguments
from separable.functional.depthwise_conv_operator import is_channels_last, result_shape, strides

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_ACTIVATIONS = (None, *arguments.ACTIVATIONS)
_NAME = "separable_conv_inference"
_SCHEMA = (
    f"{_NAME}(Tensor input, Tensor dw_weight, Tensor pw_weight, Tensor? dw_bias, Tensor? pw_bias, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation, bool pointwise_first, int inner_activation, int activation) -> Tensor"
)


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


def _fake(x, dw, pw, dw_bias, pw_bias, stride, padding, dilation, pointwise_first, inner, last):
    batch, _, *size = result_shape(x, dw, stride, padding, dilation)
    shape = (batch, pw.shape[0], *size)
    return x.new_empty_strided(shape, strides(shape, is_channels_last(x)))


_native.operators.define(_SCHEMA, tags=_TAGS)
_native.operators.impl(_NAME, _torch, "CompositeExplicitAutograd")
torch.library.register_fake(f"separable::{_NAME}", _fake, lib=_native.operators)


@register_flop_formula(torch.ops.separable.separable_conv_inference)
def _flops(x_shape, dw_shape, pw_shape, *args, out_shape=None, **kwargs) -> int:
    pointwise_first = args[5] if len(args) > 5 else kwargs["pointwise_first"]
    taps, outputs = math.prod(dw_shape[2:]), math.prod(out_shape[2:])
    mixed = math.prod(x_shape[2:]) if pointwise_first else outputs  # pixels that the pointwise half computes
    return 2 * x_shape[0] * (dw_shape[0] * taps * outputs + pw_shape[0] * pw_shape[1] * mixed)
