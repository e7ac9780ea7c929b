"""Separable layers, plain and transposed: two halves of parameters plus one call of `functional`.

The halves are `conv_dw` and `conv_pw`, as in timm, so that state dicts speak the field's language.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from separable import functional
from separable.functional import arguments
from separable.functional.arguments import Padding, Size
from separable.functional.depthwise_conv_transpose import check_padding as check_transposed_padding
from separable.functional.separable_conv import check_order
from separable.layers import depthwise
from separable.layers.depthwise import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d

Norm = Callable[[int], nn.Module]

_SEPARABLE = {1: functional.separable_conv1d, 2: functional.separable_conv2d, 3: functional.separable_conv3d}
_TRANSPOSE = {
    1: functional.depthwise_conv_transpose1d,
    2: functional.depthwise_conv_transpose2d,
    3: functional.depthwise_conv_transpose3d,
}
_DEPTHWISE = {1: DepthwiseConv1d, 2: DepthwiseConv2d, 3: DepthwiseConv3d}
_POINTWISE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class _SeparableConvNd(nn.Module):
    dims: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        depth_multiplier: int = 1,
        order: str = "depthwise_first",
        inner_norm: Norm | None = None,
        inner_activation: str | None = None,
        norm: Norm | None = None,
        activation: str | None = None,
    ):
        super().__init__()
        _init_common(self, in_channels, out_channels, depth_multiplier, order, inner_activation, activation)
        factory = {"device": device, "dtype": dtype}
        depthwise_class, pointwise_class = _DEPTHWISE[self.dims], _POINTWISE[self.dims]
        options = (kernel_size, stride, padding, dilation)
        if order == "depthwise_first":
            inner = in_channels * depth_multiplier
            self.conv_dw = depthwise_class(in_channels, inner, *options, False, padding_mode, **factory)
            self.conv_pw = pointwise_class(inner, out_channels, 1, bias=bias, **factory)
        else:
            inner = out_channels * depth_multiplier
            self.conv_pw = pointwise_class(in_channels, inner, 1, bias=False, **factory)
            self.conv_dw = depthwise_class(inner, out_channels, *options, bias, padding_mode, **factory)
        self.inner_norm = None if inner_norm is None else inner_norm(inner)
        self.norm = None if norm is None else norm(out_channels)

    def reset_parameters(self) -> None:
        _reset_children(self)

    def forward(self, input: Tensor) -> Tensor:
        dw, pw = self.conv_dw, self.conv_pw
        if self.inner_norm is None and (dw.padding_mode == "zeros" or self.order == "depthwise_first"):
            input, padding = depthwise.pad_unless_zeros(dw, input)
            x = _SEPARABLE[self.dims](
                input,
                dw.weight,
                pw.weight,
                dw.bias,
                pw.bias,
                dw.stride,
                padding,
                dw.dilation,
                order=self.order,
                inner_activation=self.inner_activation,
                activation=self.activation if self.norm is None else None,
            )
        else:
            first, second = (dw, pw) if self.order == "depthwise_first" else (pw, dw)
            x = first(input)
            x = x if self.inner_norm is None else self.inner_norm(x)
            x = arguments.activate(x, self.inner_activation)
            x = second(x)
            x = x if self.norm is not None else arguments.activate(x, self.activation)
        return x if self.norm is None else arguments.activate(self.norm(x), self.activation)

    def extra_repr(self) -> str:
        return _describe(self)


class SeparableConv1d(_SeparableConvNd):
    """Separable convolution of a sequence; see `SeparableConv2d`. Input [N, C, L]; "causal" padding exists here."""

    dims = 1


class SeparableConv2d(_SeparableConvNd):
    """A depthwise filter and a pointwise (1x1) mix: about 1/C_out + 1/k² of the multiply-adds of torch.nn.Conv2d.

    Arguments follow torch.nn.Conv2d, then:

    Args:
        depth_multiplier: maps made of (depthwise first) or summed into (pointwise first) each channel.
        order: "depthwise_first": conv_dw [C_in*m, 1, kh, kw], then conv_pw [C_out, C_in*m, 1, 1].
            "pointwise_first": conv_pw [C_out*m, C_in, 1, 1], then conv_dw [C_out, m, kh, kw].
        inner_norm, norm: called with the number of channels between and after the halves, e.g. torch.nn.BatchNorm2d.
        inner_activation, activation: None, "relu", "relu6", "silu", "hard_swish" or "gelu", after the norm of its place.

    `bias` belongs to the half that comes last. `padding` is an int, n ints, n pairs (before, after), "valid" or "same".

    Shapes: input [N, in_channels, H, W] -> [N, out_channels, H', W'].

    Raises:
        InputError: an argument breaks one of these rules.

    Source: Howard et al. 2017, arXiv:1704.04861, section 3.1; Haase and Amthor 2020, arXiv:2003.13549, section 3.

    >>> import torch
    >>> layer = SeparableConv2d(16, 32, 3, stride=2, padding="same", depth_multiplier=2)
    >>> layer(torch.zeros(1, 16, 7, 7)).shape
    torch.Size([1, 32, 4, 4])
    """

    dims = 2


class SeparableConv3d(_SeparableConvNd):
    """Separable convolution of a volume; see `SeparableConv2d`. Input [N, C, D, H, W]."""

    dims = 3


class _SeparableConvTransposeNd(nn.Module):
    dims: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        depth_multiplier: int = 1,
        order: str = "depthwise_first",
        inner_norm: Norm | None = None,
        inner_activation: str | None = None,
        norm: Norm | None = None,
        activation: str | None = None,
    ):
        super().__init__()
        if padding_mode != "zeros":
            raise depthwise.InputError("padding_mode", padding_mode, 'must be "zeros" for a transposed convolution')
        _init_common(self, in_channels, out_channels, depth_multiplier, order, inner_activation, activation)
        factory = {"device": device, "dtype": dtype}
        options = (kernel_size, stride, padding, output_padding, dilation)
        first, inner = order == "depthwise_first", (in_channels if order == "depthwise_first" else out_channels)
        inner *= depth_multiplier
        ends = (in_channels, inner) if first else (inner, out_channels)
        self.conv_dw = _DEPTHWISE_TRANSPOSE[self.dims](*ends, *options, bias=bias and not first, **factory)
        ends = (inner, out_channels) if first else (in_channels, inner)
        self.conv_pw = _POINTWISE[self.dims](*ends, 1, bias=bias and first, **factory)
        self.inner_norm = None if inner_norm is None else inner_norm(inner)
        self.norm = None if norm is None else norm(out_channels)

    def reset_parameters(self) -> None:
        _reset_children(self)

    def forward(self, input: Tensor) -> Tensor:
        first, second = (
            (self.conv_dw, self.conv_pw) if self.order == "depthwise_first" else (self.conv_pw, self.conv_dw)
        )
        x = first(input)
        x = x if self.inner_norm is None else self.inner_norm(x)
        x = second(arguments.activate(x, self.inner_activation))
        x = x if self.norm is None else self.norm(x)
        return arguments.activate(x, self.activation)

    def extra_repr(self) -> str:
        return _describe(self)


class _DepthwiseConvTransposeNd(nn.Module):
    """The depthwise half of a transposed separable convolution; weight [C, m, k...], or [C/m, m, k...] to sum m maps."""

    dims: int

    def __init__(
        self, in_channels, out_channels, kernel_size, stride, padding, output_padding, dilation, bias, device, dtype
    ):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        groups, wide = min(in_channels, out_channels), max(in_channels, out_channels)
        self.depth_multiplier = wide // groups
        self.kernel_size = arguments.per_dimension("kernel_size", kernel_size, self.dims)
        self.stride = arguments.per_dimension("stride", stride, self.dims)
        self.padding = check_transposed_padding(padding, self.dims)
        self.output_padding = arguments.per_dimension("output_padding", output_padding, self.dims, least=0)
        self.dilation = arguments.per_dimension("dilation", dilation, self.dims)
        self.activation = None
        shape = (groups, wide // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        depthwise.reset_convolution(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return _TRANSPOSE[self.dims](
            input, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.dilation
        )

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {depthwise.describe(self)}"


class DepthwiseConvTranspose1d(_DepthwiseConvTransposeNd):
    dims = 1


class DepthwiseConvTranspose2d(_DepthwiseConvTransposeNd):
    dims = 2


class DepthwiseConvTranspose3d(_DepthwiseConvTransposeNd):
    dims = 3


_DEPTHWISE_TRANSPOSE = {1: DepthwiseConvTranspose1d, 2: DepthwiseConvTranspose2d, 3: DepthwiseConvTranspose3d}


class SeparableConvTranspose1d(_SeparableConvTransposeNd):
    """Transposed separable convolution of a sequence; see `SeparableConvTranspose2d`."""

    dims = 1


class SeparableConvTranspose2d(_SeparableConvTransposeNd):
    """Upsample with a transposed depthwise filter and a pointwise mix.

    Arguments follow torch.nn.ConvTranspose2d, without groups; the rest as in `SeparableConv2d`. padding and
    output_padding are ints: several input sizes share one strided output size, so "same" would not say which.

    Shapes: input [N, in_channels, H, W] -> [N, out_channels, H', W'] with
    H' = (H - 1)*stride - 2*padding + dilation*(kh - 1) + output_padding + 1.

    >>> import torch
    >>> SeparableConvTranspose2d(16, 8, 4, stride=2, padding=1)(torch.zeros(1, 16, 7, 7)).shape
    torch.Size([1, 8, 14, 14])
    """

    dims = 2


class SeparableConvTranspose3d(_SeparableConvTransposeNd):
    """Transposed separable convolution of a volume; see `SeparableConvTranspose2d`."""

    dims = 3


def _init_common(layer, in_channels, out_channels, depth_multiplier, order, inner_activation, activation):
    depthwise.check_channels(in_channels=in_channels, out_channels=out_channels, depth_multiplier=depth_multiplier)
    check_order(order)
    arguments.check_activation("inner_activation", inner_activation)
    arguments.check_activation("activation", activation)
    layer.in_channels, layer.out_channels, layer.depth_multiplier = in_channels, out_channels, depth_multiplier
    layer.order, layer.inner_activation, layer.activation = order, inner_activation, activation


def _reset_children(layer: nn.Module) -> None:
    for child in layer.children():
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()


def _describe(layer) -> str:
    parts = [f"{layer.in_channels}, {layer.out_channels}, order={layer.order}"]
    parts += [f"inner_activation={layer.inner_activation}"] if layer.inner_activation else []
    parts += [f"activation={layer.activation}"] if layer.activation else []
    return ", ".join(parts)
