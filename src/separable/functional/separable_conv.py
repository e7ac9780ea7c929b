"""Separable convolution: one half filters space, the other mixes channels, in either order.

Source: Howard et al. 2017, "MobileNets", arXiv:1704.04861, section 3.1 (depthwise first); Haase and Amthor 2020,
"Rethinking Depthwise Separable Convolutions", arXiv:2003.13549, section 3 (pointwise first).
"""

from torch import Tensor

from separable.errors import InputError
from separable.functional import arguments, depthwise_conv
from separable.functional.arguments import Padding, Size

ORDERS = ("depthwise_first", "pointwise_first")


def separable_conv1d(
    input: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    order: str = "depthwise_first",
    inner_activation: str | None = None,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Separable convolution of a sequence; see `separable_conv2d`. Shapes: input [N, C_in, L] -> [N, C_out, L']."""
    return _separable_conv(
        1,
        input,
        dw_weight,
        pw_weight,
        dw_bias,
        pw_bias,
        stride,
        padding,
        dilation,
        order,
        inner_activation,
        activation,
        impl,
    )


def separable_conv2d(
    input: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    order: str = "depthwise_first",
    inner_activation: str | None = None,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Filter space and mix channels in two cheap steps instead of one dear one.

    Args:
        input: [N, C_in, H, W].
        dw_weight: depthwise first [C_in*m, 1, kh, kw]; pointwise first [C_out, m, kh, kw], which sums m filtered maps.
        pw_weight: depthwise first [C_out, C_in*m, 1, 1]; pointwise first [C_out*m, C_in, 1, 1].
        dw_bias, pw_bias: one value for each output channel of that half.
        stride, padding, dilation: of the depthwise half, as in `depthwise_conv2d`.
        order: "depthwise_first" (MobileNet, Xception) or "pointwise_first" (BSConv at m = 1).
        inner_activation: applied between the halves.
        activation: applied to the result.
        impl: "auto" takes the fastest way known for this shape, "reference" plain torch.

    Returns:
        [N, C_out, H', W'].

    Raises:
        InputError: an argument breaks one of these rules.

    >>> import torch
    >>> separable_conv2d(torch.ones(1, 8, 6, 6), torch.ones(8, 1, 3, 3), torch.ones(16, 8, 1, 1), padding=1).shape
    torch.Size([1, 16, 6, 6])
    """
    return _separable_conv(
        2,
        input,
        dw_weight,
        pw_weight,
        dw_bias,
        pw_bias,
        stride,
        padding,
        dilation,
        order,
        inner_activation,
        activation,
        impl,
    )


def separable_conv3d(
    input: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    *,
    order: str = "depthwise_first",
    inner_activation: str | None = None,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Separable convolution of a volume; see `separable_conv2d`. Shapes: input [N, C_in, D, H, W] -> [N, C_out, D', H', W']."""
    return _separable_conv(
        3,
        input,
        dw_weight,
        pw_weight,
        dw_bias,
        pw_bias,
        stride,
        padding,
        dilation,
        order,
        inner_activation,
        activation,
        impl,
    )


def reference(
    input, dw_weight, pw_weight, dw_bias, pw_bias, stride, pairs, dilation, order, inner_activation, activation
) -> Tensor:
    """The operation in plain torch, arguments in normal form."""
    conv = depthwise_conv.CONV[len(pairs)]
    if order == "depthwise_first":
        groups = input.shape[1]
        x = depthwise_conv.reference(input, dw_weight, dw_bias, stride, pairs, dilation, groups, inner_activation)
        return arguments.activate(conv(x, pw_weight, pw_bias), activation)
    x = arguments.activate(conv(input, pw_weight, pw_bias), inner_activation)
    groups = dw_weight.shape[0]
    return depthwise_conv.reference(x, dw_weight, dw_bias, stride, pairs, dilation, groups, activation)


def check_order(order: str) -> None:
    if order not in ORDERS:
        raise InputError("order", order, f"must be one of {', '.join(ORDERS)}")


def _check_weights(dims: int, input: Tensor, dw_weight: Tensor, pw_weight: Tensor, order: str) -> None:
    for name, weight in (("dw_weight", dw_weight), ("pw_weight", pw_weight)):
        if weight.dim() != dims + 2:
            raise InputError(name, f"tensor of shape {list(weight.shape)}", f"must have {dims + 2} dimensions")
    if any(k != 1 for k in pw_weight.shape[2:]):
        raise InputError(
            "pw_weight", f"tensor of shape {list(pw_weight.shape)}", "must have a kernel of 1 in every dimension"
        )
    channels = input.shape[1]
    if order == "depthwise_first":
        fits = dw_weight.shape[1] == 1 and channels and dw_weight.shape[0] and dw_weight.shape[0] % channels == 0
        rule = f"must be [C_in*m, 1, k...] for C_in = {channels} input channels when the depthwise half comes first"
        inner, given = dw_weight.shape[0], pw_weight.shape[1]
    else:
        fits = dw_weight.shape[0] * dw_weight.shape[1] == pw_weight.shape[0]
        rule = f"must be [C_out, m, k...] with C_out*m = {pw_weight.shape[0]}, the maps that pw_weight makes"
        inner, given = channels, pw_weight.shape[1]
    if not fits:
        raise InputError("dw_weight", f"tensor of shape {list(dw_weight.shape)}", rule)
    if inner != given:
        raise InputError(
            "pw_weight", f"tensor of shape {list(pw_weight.shape)}", f"must read {inner} channels, not {given}"
        )


def _separable_conv(
    dims,
    input,
    dw_weight,
    pw_weight,
    dw_bias,
    pw_bias,
    stride,
    padding,
    dilation,
    order,
    inner_activation,
    activation,
    impl,
):
    arguments.check_impl(impl)
    check_order(order)
    arguments.check_activation("inner_activation", inner_activation)
    arguments.check_activation("activation", activation)
    arguments.check_tensors(input, dims, dw_weight=dw_weight, pw_weight=pw_weight, dw_bias=dw_bias, pw_bias=pw_bias)
    _check_weights(dims, input, dw_weight, pw_weight, order)
    arguments.check_bias("dw_bias", dw_bias, dw_weight.shape[0])
    arguments.check_bias("pw_bias", pw_bias, pw_weight.shape[0])
    stride = arguments.per_dimension("stride", stride, dims)
    dilation = arguments.per_dimension("dilation", dilation, dims)
    size, kernel_size = input.shape[2:], dw_weight.shape[2:]
    pairs = arguments.padding_pairs(padding, size, kernel_size, stride, dilation)
    arguments.check_fits(size, kernel_size, dilation, pairs)
    return reference(
        input, dw_weight, pw_weight, dw_bias, pw_bias, stride, pairs, dilation, order, inner_activation, activation
    )
