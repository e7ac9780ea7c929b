"""Transposed depthwise convolution: the adjoint of a strided depthwise convolution, used to upsample.

Source: Dumoulin and Visin 2016, "A guide to convolution arithmetic", arXiv:1603.07285, chapter 4.
"""

import torch.nn.functional as F
from torch import Tensor

from separable.errors import InputError
from separable.functional import arguments
from separable.functional.arguments import Size

CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


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
        weight: [C, m, kh, kw], torch's layout for transposed convolution: input channel c feeds outputs c*m ... c*m+m-1.
            Or [C/m, m, kh, kw]: output channel o sums what the input channels o*m ... o*m + m - 1 spread.
        bias: one value for each output channel.
        stride, padding, output_padding, dilation: ints, as in torch.nn.ConvTranspose2d.
        activation: None, "relu", "relu6", "silu", "hard_swish" or "gelu" (erf).
        impl: "auto" or "reference".

    Returns:
        [N, C*m, H', W'] with H' = (H - 1)*stride - 2*padding + dilation*(kh - 1) + output_padding + 1.

    Raises:
        InputError: an argument breaks one of these rules; "same" and "causal" among them.
    """
    return _depthwise_conv_transpose(
        2, input, weight, bias, stride, padding, output_padding, dilation, activation, impl
    )


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
    """See `depthwise_conv_transpose2d`. Shapes: input [N, C, D, H, W], weight [C, m, kd, kh, kw] -> [N, C*m, D', H', W']."""
    return _depthwise_conv_transpose(
        3, input, weight, bias, stride, padding, output_padding, dilation, activation, impl
    )


def check_padding(padding, dims: int) -> tuple[int, ...]:
    if isinstance(padding, str):
        raise InputError(
            "padding",
            padding,
            "a transposed convolution takes ints and output_padding: several input sizes give the same strided output "
            "size, so the word does not say which one to restore",
        )
    return arguments.per_dimension("padding", padding, dims, least=0)


def _depthwise_conv_transpose(dims, input, weight, bias, stride, padding, output_padding, dilation, activation, impl):
    arguments.check_impl(impl)
    arguments.check_activation("activation", activation)
    arguments.check_tensors(input, dims, weight=weight, bias=bias)
    channels = input.shape[1]
    if weight.dim() != dims + 2 or channels not in (weight.shape[0], weight.shape[0] * weight.shape[1]):
        raise InputError(
            "weight",
            f"tensor of shape {list(weight.shape)}",
            f"must be [C, m, k...] or [C/m, m, k...] with {dims} kernel dimensions for C = {channels} input channels",
        )
    groups = weight.shape[0]
    if channels != groups:
        weight = weight.flatten(0, 1).unsqueeze(1)  # [C, 1, k...], as torch lays out m inputs that feed one output
    arguments.check_bias("bias", bias, groups * weight.shape[1])
    stride = arguments.per_dimension("stride", stride, dims)
    padding = check_padding(padding, dims)
    output_padding = arguments.per_dimension("output_padding", output_padding, dims, least=0)
    dilation = arguments.per_dimension("dilation", dilation, dims)
    for o, s, d in zip(output_padding, stride, dilation, strict=True):
        if o >= s and o >= d:
            raise InputError(
                "output_padding", output_padding, f"must be smaller than stride {stride} or dilation {dilation}"
            )
    y = CONV_TRANSPOSE[dims](input, weight, bias, stride, padding, output_padding, groups, dilation)
    return arguments.activate(y, activation)
