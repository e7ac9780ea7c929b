"""Depthwise layers, plain and transposed: parameters plus one call of `functional`, written once for N dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import init

from separable import functional
from separable.errors import InputError
from separable.functional import arguments
from separable.functional.arguments import Padding, Pairs, Size
from separable.functional.depthwise_conv_transpose import check_output_padding
from separable.functional.depthwise_conv_transpose import check_padding as check_transposed_padding

_CONV = {1: functional.depthwise_conv1d, 2: functional.depthwise_conv2d, 3: functional.depthwise_conv3d}
_CONV_TRANSPOSE = {
    1: functional.depthwise_conv_transpose1d,
    2: functional.depthwise_conv_transpose2d,
    3: functional.depthwise_conv_transpose3d,
}
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _Depthwise(nn.Module):
    """What plain and transposed layers share: channels in equal groups, a weight, perhaps a bias."""

    dims: int
    weight: nn.Parameter
    bias: nn.Parameter | None
    stride: tuple[int, ...]
    padding: str | tuple[int, ...] | Pairs
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...] | None = None
    padding_mode: str = "zeros"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        depth_multiplier: int | None,
        activation: str | None,
    ):
        super().__init__()
        check_channels(in_channels=in_channels, out_channels=out_channels)
        wide, groups = max(in_channels, out_channels), min(in_channels, out_channels)
        if wide % groups:
            rule = f"must be a multiple or a divisor of in_channels = {in_channels}"
            raise InputError("out_channels", out_channels, rule)
        if depth_multiplier is not None:
            check_channels(depth_multiplier=depth_multiplier)
            if depth_multiplier != wide // groups:
                rule = f"{in_channels} -> {out_channels} channels make it {wide // groups}"
                raise InputError("depth_multiplier", depth_multiplier, rule)
        arguments.check_activation("activation", activation)
        self.in_channels, self.out_channels = int(in_channels), int(out_channels)
        self.depth_multiplier, self.activation = int(wide // groups), activation
        self.kernel_size = arguments.per_dimension("kernel_size", kernel_size, self.dims)

    def _make_parameters(
        self, filters: int, inner: int, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        self.weight = nn.Parameter(torch.empty((filters, inner, *self.kernel_size), device=device, dtype=dtype))
        offsets = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", offsets)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch.nn.Conv2d's: uniform in ±1/sqrt(fan_in), for weight and bias."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults."""
        ones, zeros = (1,) * self.dims, (0,) * self.dims
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts += [f"stride={self.stride}"] if self.stride != ones else []
        parts += [f"padding={self.padding!r}"] if self.padding != zeros else []
        parts += [f"output_padding={self.output_padding}"] if self.output_padding not in (None, zeros) else []
        parts += [f"dilation={self.dilation}"] if self.dilation != ones else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"padding_mode={self.padding_mode!r}"] if self.padding_mode != "zeros" else []
        parts += [f"depth_multiplier={self.depth_multiplier}"] if self.depth_multiplier != 1 else []
        parts += [f"activation={self.activation!r}"] if self.activation else []
        return ", ".join(parts)


class _DepthwiseConvNd(_Depthwise):
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
        depth_multiplier: int | None = None,
        activation: str | None = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, depth_multiplier, activation)
        self.stride = arguments.per_dimension("stride", stride, self.dims)
        self.dilation = arguments.per_dimension("dilation", dilation, self.dims)
        self.padding = check_padding(padding, self.kernel_size, self.stride, self.dilation)
        if padding_mode not in _PADDING_MODES:
            raise InputError("padding_mode", padding_mode, f"must be one of {', '.join(_PADDING_MODES)}")
        self.padding_mode = padding_mode
        self._make_parameters(self.out_channels, max(1, self.in_channels // self.out_channels), bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        input, padding = self.pad_unless_zeros(input)
        return _CONV[self.dims](
            input, self.weight, self.bias, self.stride, padding, self.dilation, activation=self.activation
        )

    def pad_unless_zeros(self, input: Tensor) -> tuple[Tensor, Padding]:
        """The input, and what is left to pad: modes other than zeros pad ahead of the convolution."""
        if self.padding_mode == "zeros":
            return input, self.padding
        window = (self.padding, self.kernel_size, self.stride, self.dilation)
        return arguments.pad_ahead(input, *window, self.padding_mode), 0


class DepthwiseConv1d(_DepthwiseConvNd):
    """Filter each channel of a sequence on its own; see `DepthwiseConv2d`. Input [N, C, L]; padding may be "causal"."""

    dims = 1


class DepthwiseConv2d(_DepthwiseConvNd):
    """Filter each channel on its own: torch.nn.Conv2d with one group a channel.

    Args:
        in_channels, out_channels: out_channels = in_channels * m, where output c*m + j reads input c and weight is
            [C*m, 1, kh, kw]; or out_channels = in_channels / m, where each output sums m filtered channels and weight
            is [C/m, m, kh, kw].
        kernel_size, stride, dilation, bias, padding_mode, device, dtype: as in torch.nn.Conv2d.
        padding: an int, n ints, n pairs (before, after), "valid", or "same", which here goes with any stride.
        depth_multiplier: m, which may be left to follow from the two numbers of channels.
        activation: None, "relu", "relu6", "silu", "hard_swish" or "gelu" (erf).

    Shapes: input [N, in_channels, H, W] -> [N, out_channels, H', W'].

    Raises:
        InputError: an argument breaks one of these rules.

    >>> DepthwiseConv2d(8, 16, 3, padding="same")
    DepthwiseConv2d(8, 16, kernel_size=(3, 3), padding='same', depth_multiplier=2)
    """

    dims = 2


class DepthwiseConv3d(_DepthwiseConvNd):
    """Filter each channel of a volume on its own; see `DepthwiseConv2d`. Input [N, C, D, H, W]."""

    dims = 3


class _DepthwiseConvTransposeNd(_Depthwise):
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
        depth_multiplier: int | None = None,
        activation: str | None = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, depth_multiplier, activation)
        if padding_mode != "zeros":
            raise InputError("padding_mode", padding_mode, 'must be "zeros" for a transposed convolution')
        self.stride = arguments.per_dimension("stride", stride, self.dims)
        self.dilation = arguments.per_dimension("dilation", dilation, self.dims)
        self.padding: tuple[int, ...] = check_transposed_padding(padding, self.dims)
        self.output_padding: tuple[int, ...] = check_output_padding(
            output_padding, self.stride, self.dilation, self.dims
        )
        self._make_parameters(min(self.in_channels, self.out_channels), self.depth_multiplier, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        window = (self.stride, self.padding, self.output_padding, self.dilation)
        return _CONV_TRANSPOSE[self.dims](input, self.weight, self.bias, *window, activation=self.activation)


class DepthwiseConvTranspose1d(_DepthwiseConvTransposeNd):
    """Spread each step of each channel of a sequence; see `DepthwiseConvTranspose2d`. Input [N, C, L]."""

    dims = 1


class DepthwiseConvTranspose2d(_DepthwiseConvTransposeNd):
    """Spread each pixel over a k x k window of its own channel: torch.nn.ConvTranspose2d with one group a channel.

    Arguments follow torch.nn.ConvTranspose2d, without groups; channels, depth_multiplier and activation as in
    `DepthwiseConv2d`. weight is [C, m, kh, kw] for out_channels = C * m and [C/m, m, kh, kw] for out_channels = C / m.

    Shapes: input [N, in_channels, H, W] -> [N, out_channels, H', W'] with
    H' = (H - 1)*stride - 2*padding + dilation*(kh - 1) + output_padding + 1.

    Raises:
        InputError: an argument breaks one of these rules; padding "same" and "causal" are refused with the reason.

    >>> DepthwiseConvTranspose2d(8, 8, 4, stride=2, padding=1)(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 8, 10, 10])
    """

    dims = 2


class DepthwiseConvTranspose3d(_DepthwiseConvTransposeNd):
    """Spread each voxel over its own channel; see `DepthwiseConvTranspose2d`. Input [N, C, D, H, W]."""

    dims = 3


def check_channels(**channels: int) -> None:
    for name, value in channels.items():
        if not arguments.is_whole(value) or value < 1:
            raise InputError(
                name, repr(value) if isinstance(value, str) else value, "must be a whole number of at least 1"
            )


def check_padding(
    padding: Padding, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> str | tuple[int, ...] | Pairs:
    """The padding in the form that is kept: the word, or ints, or pairs; refused at construction, not at first use."""
    arguments.padding_pairs(padding, [1] * len(kernel_size), kernel_size, stride, dilation)
    if isinstance(padding, str):
        return padding
    pairs = arguments.fixed_pairs(padding, len(kernel_size))
    symmetric = all(before == after for before, after in pairs)
    return tuple(before for before, _ in pairs) if symmetric else pairs
