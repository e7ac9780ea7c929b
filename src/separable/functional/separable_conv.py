"""Separable convolution: one half filters space, the other mixes channels, in either order.

Source: Howard et al. 2017, "MobileNets", arXiv:1704.04861, section 3.1 (depthwise first); Haase and Amthor 2020,
"Rethinking Depthwise Separable Convolutions", arXiv:2003.13549, section 3 (pointwise first).
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from separable import _native
from separable.errors import InputError
from separable.functional import (
    arguments,
    depthwise_conv,
    depthwise_conv_operator,
    separable_conv_operator,  # noqa: F401 - defines the operator
)
from separable.functional.arguments import Padding, Size, Window, seen_whole

ORDERS = ("depthwise_first", "pointwise_first")


@seen_whole
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
    recompute: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Separable convolution of a sequence; see `separable_conv2d`. `padding="causal"` exists here only.

    Shapes: input [N, C_in, L] -> [N, C_out, L'].
    """
    weights, biases, activations = (dw_weight, pw_weight), (dw_bias, pw_bias), (inner_activation, activation)
    how = (order, activations, recompute, impl)
    return _separable_conv(1, input, weights, biases, stride, padding, dilation, *how)


@seen_whole
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
    recompute: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Filter space and mix channels in two cheap steps instead of one dear one.

    Args:
        input: [N, C_in, H, W].
        dw_weight: depthwise first [C_in*m, 1, kh, kw]; pointwise first [C_out, m, kh, kw], which sums m filtered maps.
        pw_weight: depthwise first [C_out, C_in*m, 1, 1]; pointwise first [C_out*m, C_in, 1, 1].
        dw_bias, pw_bias: one value for each output channel of that half.
        stride, padding, dilation: of the depthwise half, as in `depthwise_conv2d`; pointwise first, the border of
            zeros surrounds the mixed maps, after pw_bias and inner_activation.
        order: "depthwise_first" (MobileNet, Xception) or "pointwise_first" (BSConv at m = 1).
        inner_activation: applied between the halves.
        activation: applied to the result.
        recompute: in training, keep no tensor between the halves: backward makes it again from the input. Same numbers,
            less memory, the first half's work once more.
        impl: "auto" takes the fastest way known for this shape, "reference" plain torch, "native" the fused kernels:
            one or two dimensions, depth multiplier 1, and inference or `recompute`.

    Returns:
        [N, C_out, H', W'] with H' as in `depthwise_conv2d`. Work in multiply-adds, depthwise first:
        N * H' * W' * C_in*m * (kh * kw + C_out); pointwise first: N * C_out*m * (H * W * C_in + H' * W' * kh * kw).

    Raises:
        InputError: an argument breaks one of these rules.

    >>> import torch
    >>> separable_conv2d(torch.ones(1, 8, 6, 6), torch.ones(8, 1, 3, 3), torch.ones(16, 8, 1, 1), padding=1).shape
    torch.Size([1, 16, 6, 6])
    """
    weights, biases, activations = (dw_weight, pw_weight), (dw_bias, pw_bias), (inner_activation, activation)
    how = (order, activations, recompute, impl)
    return _separable_conv(2, input, weights, biases, stride, padding, dilation, *how)


@seen_whole
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
    recompute: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Separable convolution of a volume; see `separable_conv2d`.

    Shapes: input [N, C_in, D, H, W] -> [N, C_out, D', H', W'].
    """
    weights, biases, activations = (dw_weight, pw_weight), (dw_bias, pw_bias), (inner_activation, activation)
    how = (order, activations, recompute, impl)
    return _separable_conv(3, input, weights, biases, stride, padding, dilation, *how)


def reference(
    input: Tensor,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    window: Window,
    order: str,
    activations: tuple[str | None, str | None],
) -> Tensor:
    """The operation in plain torch, arguments in normal form; weights and biases are (depthwise, pointwise)."""
    return _half_by_half(input, weights, biases, window, order, activations, "reference")


def _half_by_half(
    input: Tensor,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    window: Window,
    order: str,
    activations: tuple[str | None, str | None],
    depthwise_impl: str,
) -> Tensor:
    """The depthwise half in the way that `depthwise_impl` names, the pointwise half in torch's."""
    (dw_weight, pw_weight), (dw_bias, pw_bias), (inner, last) = weights, biases, activations
    mix = depthwise_conv.CONV[len(window.stride)]
    if order == "depthwise_first":
        x = depthwise_conv.compute(input, dw_weight, dw_bias, window, arguments.sizes(input)[1], inner, depthwise_impl)
        return arguments.activate(mix(x, pw_weight, pw_bias), last)
    x = arguments.activate(mix(input, pw_weight, pw_bias), inner)
    return depthwise_conv.compute(x, dw_weight, dw_bias, window, arguments.sizes(dw_weight)[0], last, depthwise_impl)


def check_order(order: str) -> None:
    if order not in ORDERS:
        raise InputError("order", order, f"must be one of {', '.join(ORDERS)}")


def _check_weights(input: Tensor, dw_weight: Tensor, pw_weight: Tensor, order: str) -> None:
    """The two halves fit the input and each other."""
    channels, filters, inner = arguments.sizes(input)[1], *arguments.sizes(dw_weight)[:2]
    made, reads, *mixing = arguments.sizes(pw_weight)
    if any(k != 1 for k in mixing):
        raise arguments.wrong_shape("pw_weight", pw_weight, "must have a kernel of 1 in every dimension")
    if order == "depthwise_first":
        fits = inner == 1 and filters % channels == 0
        rule = f"must be [C_in*m, 1, k...] for C_in = {channels} input channels when the depthwise half comes first"
        read = filters
    else:
        fits = filters * inner == made
        rule = f"must be [C_out, m, k...] with C_out*m = {made}, the maps that pw_weight makes"
        read = channels
    if not fits:
        raise arguments.wrong_shape("dw_weight", dw_weight, rule)
    if reads != read:
        raise arguments.wrong_shape("pw_weight", pw_weight, f"must read {read} channels, not {reads}")


def _separable_conv(
    dims: int,
    input: Tensor,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    stride: Size,
    padding: Padding,
    dilation: Size,
    order: str,
    activations: tuple[str | None, str | None],
    recompute: bool,
    impl: str,
) -> Tensor:
    (dw_weight, pw_weight), (dw_bias, pw_bias) = weights, biases
    arguments.check_impl(impl, native=True)
    check_order(order)
    arguments.check_activation("inner_activation", activations[0])
    arguments.check_activation("activation", activations[1])
    arguments.check_tensors(input, dims, dw_weight=dw_weight, pw_weight=pw_weight, dw_bias=dw_bias, pw_bias=pw_bias)
    arguments.check_kernel("dw_weight", dw_weight, dims, "[C_in*m, 1, k...] or [C_out, m, k...]")
    arguments.check_kernel("pw_weight", pw_weight, dims, "[C_out, C_in*m, 1...] or [C_out*m, C_in, 1...]")
    _check_weights(input, dw_weight, pw_weight, order)
    filters, _, *kernel_size = arguments.sizes(dw_weight)
    arguments.check_bias("dw_bias", dw_bias, filters)
    arguments.check_bias("pw_bias", pw_bias, arguments.sizes(pw_weight)[0])
    window = arguments.window(input.shape[2:], kernel_size, stride, padding, dilation)
    trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, *weights, *biases))
    if impl != "reference":
        obstacle = _native.missing or obstacle_to_native(input, weights, biases, order, recompute)
        if not obstacle and (impl == "native" or native_wins(input)):
            compute = _native_recomputing if trained else _native_conv
            return compute(input, weights, biases, window, order, activations)
        if obstacle and impl == "native":
            raise InputError("impl", impl, f"cannot run here: {obstacle}")
    given = (input, weights, biases, window, order, activations, "auto" if impl == "auto" else "reference")
    if trained and recompute and _can_checkpoint():
        return checkpoint(_half_by_half, *given, use_reentrant=False, preserve_rng_state=False)
    return _half_by_half(*given)


def _can_checkpoint() -> bool:
    """Exported graphs hold no hooks, and functorch's transforms know none: there everything is kept."""
    capturing = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return not (capturing or torch._C._are_functorch_transforms_active())


def obstacle_to_native(
    input: Tensor,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    order: str,
    recompute: bool = False,
) -> str:
    """Why the fused kernels cannot compute this; empty where they can."""
    tensors = [t for t in (input, *weights, *biases) if t is not None]
    if input.device.type != "cpu":
        return f"the native kernels run on the CPU, and the input is on {input.device}"
    filters, inner = arguments.sizes(weights[0])[:2]
    single = inner == 1 and (order == "pointwise_first" or filters == arguments.sizes(input)[1])
    if input.dim() > 4 or not single:
        return "the fused kernels have one or two dimensions and depth multiplier 1"
    if any(t.dtype != torch.float32 for t in tensors):
        return f"the fused kernels compute float32, and the input is {input.dtype}"
    if not recompute and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "the fused kernels keep nothing for derivatives; call them under torch.no_grad() or with recompute=True"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses its own dtype"
    return _native.obstacle()


def native_wins(input: Tensor) -> bool:
    """True where the fused kernels are known to beat torch's own: on channels-last memory, which they read as it is.

    Where a dispatch mode watches operation by operation, as a layer-by-layer profile does, the halves stay apart.
    """
    return input.stride(1) == 1 and input.shape[1] > 1 and not _native.keeps_apart()


def _native_conv(
    input: Tensor,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    window: Window,
    order: str,
    activations: tuple[str | None, str | None],
) -> Tensor:
    flat = (window.stride, [side for pair in window.pairs for side in pair], window.dilation)
    inner, last = map(depthwise_conv_operator.number_of, activations)
    first = order == "pointwise_first"
    return torch.ops.separable.separable_conv_inference(input, *weights, *biases, *flat, first, inner, last)


def _native_recomputing(
    input: Tensor,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    window: Window,
    order: str,
    activations: tuple[str | None, str | None],
) -> Tensor:
    """With derivatives. The last activation stands outside, so that torch keeps of it what its own derivative needs."""
    flat = (window.stride, [side for pair in window.pairs for side in pair], window.dilation)
    inner, first = depthwise_conv_operator.number_of(activations[0]), order == "pointwise_first"
    y = torch.ops.separable.separable_conv(input, *weights, *biases, *flat, first, inner)
    return arguments.activate(y, activations[1])
