"""Separable layers, plain and transposed: two halves of parameters plus one call of `functional`.

The halves are `conv_dw` and `conv_pw`, as in timm, so that state dicts speak the field's language.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from separable import functional
from separable.errors import InputError
from separable.functional import arguments
from separable.functional.arguments import Padding, Size
from separable.functional.separable_conv import check_order
from separable.layers.depthwise import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    DepthwiseConvTranspose1d,
    DepthwiseConvTranspose2d,
    DepthwiseConvTranspose3d,
    check_channels,
)
from separable.layers.norm import normalize

Norm = Callable[[int], nn.Module]

_SEPARABLE = {1: functional.separable_conv1d, 2: functional.separable_conv2d, 3: functional.separable_conv3d}
_DEPTHWISE = {1: DepthwiseConv1d, 2: DepthwiseConv2d, 3: DepthwiseConv3d}
_DEPTHWISE_TRANSPOSE = {1: DepthwiseConvTranspose1d, 2: DepthwiseConvTranspose2d, 3: DepthwiseConvTranspose3d}
_POINTWISE: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class _Separable(nn.Module):
    """What plain and transposed layers share: two halves in either order, a norm and an activation after each."""

    dims: int
    conv_dw: Any  # a depthwise layer of `dims` dimensions, plain or transposed
    conv_pw: Any  # torch's convolution with a kernel of 1
    inner_norm: nn.Module | None
    norm: nn.Module | None

    def _init_halves(
        self,
        depthwise: Callable[..., nn.Module],
        in_channels: int,
        out_channels: int,
        depth_multiplier: int,
        order: str,
        bias: bool,
        factory: dict[str, Any],
    ) -> None:
        """Make conv_dw by `depthwise(in, out, bias=...)`, and conv_pw; `bias` belongs to the half that comes last."""
        check_channels(in_channels=in_channels, out_channels=out_channels, depth_multiplier=depth_multiplier)
        check_order(order)
        self.in_channels, self.out_channels = int(in_channels), int(out_channels)
        self.depth_multiplier, self.order = int(depth_multiplier), order
        pointwise, m = _POINTWISE[self.dims], self.depth_multiplier
        if order == "depthwise_first":
            self.conv_dw = depthwise(self.in_channels, self.in_channels * m, bias=False)
            self.conv_pw = pointwise(self.in_channels * m, self.out_channels, 1, bias=bias, **factory)
        else:
            self.conv_pw = pointwise(self.in_channels, self.out_channels * m, 1, bias=False, **factory)
            self.conv_dw = depthwise(self.out_channels * m, self.out_channels, bias=bias)

    def _init_between(
        self,
        inner_norm: Norm | None,
        inner_activation: str | None,
        norm: Norm | None,
        activation: str | None,
        factory: dict[str, Any],
    ) -> None:
        arguments.check_activation("inner_activation", inner_activation)
        arguments.check_activation("activation", activation)
        self.inner_activation, self.activation = inner_activation, activation
        first = self.conv_dw if self.order == "depthwise_first" else self.conv_pw
        self.inner_norm = _make_norm("inner_norm", inner_norm, first.out_channels, factory)
        self.norm = _make_norm("norm", norm, self.out_channels, factory)

    def reset_parameters(self) -> None:
        """Each half's own, and each norm's."""
        for child in self.children():
            reset = getattr(child, "reset_parameters", None)
            if reset is not None:
                reset()

    def _one_after_the_other(self, input: Tensor) -> Tensor:
        """first half -> inner_norm -> inner_activation -> second half -> norm -> activation."""
        halves = (self.conv_dw, self.conv_pw) if self.order == "depthwise_first" else (self.conv_pw, self.conv_dw)
        x = normalize(self.inner_norm, halves[0](input), self.inner_activation)
        return normalize(self.norm, halves[1](x), self.activation)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, order={self.order!r}"]
        parts += [f"inner_activation={self.inner_activation!r}"] if self.inner_activation else []
        parts += [f"activation={self.activation!r}"] if self.activation else []
        return ", ".join(parts)


class _SeparableConvNd(_Separable):
    recompute = False  # of layers pickled before it was an argument

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
        recompute: bool = False,
    ):
        super().__init__()
        self.recompute = bool(recompute)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        def depthwise(channels: int, out: int, bias: bool) -> nn.Module:
            window = (kernel_size, stride, padding, dilation)
            return _DEPTHWISE[self.dims](channels, out, *window, bias, padding_mode, **factory)

        self._init_halves(depthwise, in_channels, out_channels, depth_multiplier, order, bias, factory)
        self._init_between(inner_norm, inner_activation, norm, activation, factory)

    def forward(self, input: Tensor) -> Tensor:
        if not self._is_one_operation():
            return self._one_after_the_other(input)
        dw, pw = self.conv_dw, self.conv_pw
        input, padding = dw.pad_unless_zeros(input)
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
            recompute=self.recompute,
        )
        return x if self.norm is None else normalize(self.norm, x, self.activation)

    def _is_one_operation(self) -> bool:
        """Whether nothing stands between the halves, and nobody replaced or hooked one of them and expects its call."""
        dw, pw = self.conv_dw, self.conv_pw
        borders = dw.padding_mode == "zeros" or self.order == "depthwise_first"
        plain = type(dw) is _DEPTHWISE[self.dims] and type(pw) is _POINTWISE[self.dims]
        return self.inner_norm is None and plain and borders and not (is_hooked(dw) or is_hooked(pw))


class SeparableConv1d(_SeparableConvNd):
    """Separable convolution of a sequence; see `SeparableConv2d`. Input [N, C, L]; padding may be "causal"."""

    dims = 1


class SeparableConv2d(_SeparableConvNd):
    """A depthwise filter and a pointwise (1x1) mix: about 1/C_out + 1/k² of the multiply-adds of torch.nn.Conv2d.

    Arguments follow torch.nn.Conv2d, without groups, then:

    Args:
        padding: an int, n ints, n pairs (before, after), "valid", or "same", which here goes with any stride.
        bias: of the half that comes last.
        depth_multiplier: maps made of (depthwise first) or summed into (pointwise first) each channel.
        order: "depthwise_first": conv_dw [C_in*m, 1, kh, kw], then conv_pw [C_out, C_in*m, 1, 1].
            "pointwise_first": conv_pw [C_out*m, C_in, 1, 1], then conv_dw [C_out, m, kh, kw].
        inner_norm, norm: called with the number of channels between and after the halves, as torch.nn.BatchNorm2d is.
        recompute: in training, keep no tensor between the halves; see `separable_conv2d`. It has no effect where an
            inner_norm stands there, for a norm needs what it normalizes.
        inner_activation, activation: None, "relu", "relu6", "silu", "hard_swish" or "gelu" (erf), each after the norm.

    Shapes: input [N, in_channels, H, W] -> [N, out_channels, H', W'].

    Raises:
        InputError: an argument breaks one of these rules.

    Source: Howard et al. 2017, arXiv:1704.04861, section 3.1; Haase and Amthor 2020, arXiv:2003.13549, section 3.

    >>> layer = SeparableConv2d(16, 32, 3, stride=2, padding="same", depth_multiplier=2)
    >>> layer(torch.zeros(1, 16, 7, 7)).shape
    torch.Size([1, 32, 4, 4])
    """

    dims = 2


class SeparableConv3d(_SeparableConvNd):
    """Separable convolution of a volume; see `SeparableConv2d`. Input [N, C, D, H, W]."""

    dims = 3


class _SeparableConvTransposeNd(_Separable):
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        def depthwise(channels: int, out: int, bias: bool) -> nn.Module:
            window = (kernel_size, stride, padding, output_padding, bias, dilation, padding_mode)
            return _DEPTHWISE_TRANSPOSE[self.dims](channels, out, *window, **factory)

        self._init_halves(depthwise, in_channels, out_channels, depth_multiplier, order, bias, factory)
        self._init_between(inner_norm, inner_activation, norm, activation, factory)

    def forward(self, input: Tensor) -> Tensor:
        return self._one_after_the_other(input)


class SeparableConvTranspose1d(_SeparableConvTransposeNd):
    """Transposed separable convolution of a sequence; see `SeparableConvTranspose2d`. Input [N, C, L]."""

    dims = 1


class SeparableConvTranspose2d(_SeparableConvTransposeNd):
    """Upsample with a transposed depthwise filter and a pointwise mix.

    Arguments follow torch.nn.ConvTranspose2d, without groups; the rest as in `SeparableConv2d`. padding and
    output_padding are ints: several input sizes share one strided output size, so "same" would not say which.

    Shapes: input [N, in_channels, H, W] -> [N, out_channels, H', W'] with
    H' = (H - 1)*stride - 2*padding + dilation*(kh - 1) + output_padding + 1.

    Raises:
        InputError: an argument breaks one of these rules.

    >>> SeparableConvTranspose2d(16, 8, 4, stride=2, padding=1)(torch.zeros(1, 16, 7, 7)).shape
    torch.Size([1, 8, 14, 14])
    """

    dims = 2


class SeparableConvTranspose3d(_SeparableConvTransposeNd):
    """Transposed separable convolution of a volume; see `SeparableConvTranspose2d`. Input [N, C, D, H, W]."""

    dims = 3


def _make_norm(name: str, norm: Norm | None, channels: int, factory: dict[str, Any]) -> nn.Module | None:
    if norm is None:
        return None
    if isinstance(norm, nn.Module) or not callable(norm):
        rule = "must be called with a number of channels to make the module, as torch.nn.BatchNorm2d is"
        raise InputError(name, norm, rule)
    return norm(channels).to(**factory)  # where the halves are, and in their dtype


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward; torch asks the same in nn.Module.__call__."""
    forward = module._forward_hooks or module._forward_pre_hooks
    backward = module._backward_hooks or module._backward_pre_hooks
    return bool(forward or backward or _has_any_global_hook())
