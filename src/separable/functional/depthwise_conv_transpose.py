"""Transposed depthwise convolution: the adjoint of a strided depthwise convolution, used to upsample.

Source: Dumoulin and Visin 2016, "A guide to convolution arithmetic", arXiv:1603.07285, chapter 4.
"""

import torch.nn.functional as F
from torch import Tensor

from separable.errors import InputError
from separable.functional import arguments
from separable.functional.arguments import Size, seen_whole

CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@seen_whole
def depthwise_conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """See `depthwise_conv_transpose2d`. Shapes: input [N, C, L], weight [C, m, k] -> [N, C*m, L']."""
    return _depthwise_conv_transpose(
        1, input, weight, bias, stride, padding, output_padding, dilation, activation, impl
    )


@seen_whole
def depthwise_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Spread each pixel of each channel over a k x k window of the output; channels are never mixed.

    Args:
        input: [N, C, H, W].
        weight: [C, m, kh, kw], torch's layout for transposed convolution: input channel c
            feeds outputs c*m ... c*m + m - 1. Or [C/m, m, kh, kw]: output channel o sums what the input channels
            o*m ... o*m + m - 1 spread.
        bias: one value for each output channel.
        stride, padding, output_padding, dilation: ints, as in torch.nn.ConvTranspose2d.
        activation: None, "relu", "relu6", "silu", "hard_swish" or "gelu" (erf).
        impl: "auto" or "reference".

    Returns:
        [N, C*m, H', W'] with H' = (H - 1)*stride - 2*padding + dilation*(kh - 1) + output_padding + 1.

    Raises:
        InputError: an argument breaks one of these rules; padding "same" and "causal" are refused with the reason.

    >>> import torch
    >>> depthwise_conv_transpose2d(torch.ones(1, 2, 5, 5), torch.ones(2, 3, 4, 4), stride=2, padding=1).shape
    torch.Size([1, 6, 10, 10])
    """
    return _depthwise_conv_transpose(
        2, input, weight, bias, stride, padding, output_padding, dilation, activation, impl
    )


@seen_whole
def depthwise_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """See `depthwise_conv_transpose2d`.

    Shapes: input [N, C, D, H, W], weight [C, m, kd, kh, kw] -> [N, C*m, D', H', W'].
    """
    return _depthwise_conv_transpose(
        3, input, weight, bias, stride, padding, output_padding, dilation, activation, impl
    )


def reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    dilation: tuple[int, ...],
    activation: str | None,
) -> Tensor:
    """The operation in plain torch, arguments in normal form."""
    groups = arguments.sizes(weight)[0]
    if arguments.sizes(input)[1] != groups:
        weight = weight.flatten(0, 1).unsqueeze(1)  # [C, 1, k...], torch's layout where m inputs feed one output
    y = CONV_TRANSPOSE[len(stride)](input, weight, bias, stride, padding, output_padding, groups, dilation)
    return arguments.activate(y, activation)


def check_padding(padding: Size, dims: int) -> tuple[int, ...]:
    if isinstance(padding, str):
        rule = (
            "a transposed convolution takes ints and output_padding: several input sizes give the same strided output "
            "size, so the word does not say which one to restore"
        )
        raise InputError("padding", repr(padding), rule)
    return arguments.per_dimension("padding", padding, dims, least=0)


def check_output_padding(
    output_padding: Size, stride: tuple[int, ...], dilation: tuple[int, ...], dims: int
) -> tuple[int, ...]:
    values = arguments.per_dimension("output_padding", output_padding, dims, least=0)
    for o, s, d in zip(values, stride, dilation, strict=True):
        if o >= s and o >= d:
            raise InputError("output_padding", values, f"must be smaller than stride {stride} or dilation {dilation}")
    return values


def _depthwise_conv_transpose(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    dilation: Size,
    activation: str | None,
    impl: str,
) -> Tensor:
    arguments.check_impl(impl)
    arguments.check_activation("activation", activation)
    arguments.check_tensors(input, dims, weight=weight, bias=bias)
    arguments.check_kernel("weight", weight, dims, "[C, m, k...]")
    channels, (groups, multiplier, *kernel_size) = arguments.sizes(input)[1], arguments.sizes(weight)
    if channels not in (groups, groups * multiplier):
        rule = f"must be [C, m, k...] or [C/m, m, k...] for C = {channels} input channels"
        raise arguments.wrong_shape("weight", weight, rule)
    arguments.check_bias("bias", bias, groups * multiplier if channels == groups else groups)
    strides = arguments.per_dimension("stride", stride, dims)
    dilations = arguments.per_dimension("dilation", dilation, dims)
    paddings = check_padding(padding, dims)
    extras = check_output_padding(output_padding, strides, dilations, dims)
    _check_size(input.shape[2:], kernel_size, strides, paddings, extras, dilations)
    return reference(input, weight, bias, strides, paddings, extras, dilations, activation)


def _check_size(size, kernel_size, stride, padding, output_padding, dilation) -> None:
    """Every dimension of input and output must have at least one element."""
    for n, k, s, p, o, d in zip(size, kernel_size, stride, padding, output_padding, dilation, strict=True):
        if arguments.certain(n < 1):
            raise InputError("input", f"spatial size {list(size)}", "must be at least 1 in each dimension")
        if arguments.certain((n - 1) * s - 2 * p + d * (k - 1) + o + 1 < 1):
            rule = f"padding {list(padding)} leaves nothing of the output"
            raise InputError("input", f"spatial size {list(size)}", rule)
