"""Depthwise layers: parameters plus one call of `functional`, written once for 1, 2 and 3 dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import init

from separable import functional
from separable.errors import InputError
from separable.functional import arguments
from separable.functional.arguments import Padding, Size

_CONV = {1: functional.depthwise_conv1d, 2: functional.depthwise_conv2d, 3: functional.depthwise_conv3d}
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _DepthwiseConvNd(nn.Module):
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
        depth_multiplier: int | None = None,
        activation: str | None = None,
    ):
        super().__init__()
        check_channels(in_channels=in_channels, out_channels=out_channels)
        wide, groups = max(in_channels, out_channels), min(in_channels, out_channels)
        if wide % groups:
            raise InputError(
                "out_channels", out_channels, f"must be a multiple or a divisor of in_channels = {in_channels}"
            )
        if depth_multiplier not in (None, wide // groups):
            raise InputError(
                "depth_multiplier",
                depth_multiplier,
                f"{in_channels} -> {out_channels} channels make it {wide // groups}",
            )
        self.in_channels, self.out_channels, self.depth_multiplier = in_channels, out_channels, wide // groups
        self.kernel_size = arguments.per_dimension("kernel_size", kernel_size, self.dims)
        self.stride = arguments.per_dimension("stride", stride, self.dims)
        self.dilation = arguments.per_dimension("dilation", dilation, self.dims)
        self.padding = check_padding(padding, self.kernel_size, self.stride, self.dilation)
        self.padding_mode = check_padding_mode(padding_mode)
        arguments.check_activation("activation", activation)
        self.activation = activation
        shape = (out_channels, max(1, in_channels // out_channels), *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch.nn.Conv2d's: uniform in ±1/sqrt(fan_in), for weight and bias."""
        reset_convolution(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        input, padding = pad_unless_zeros(self, input)
        return _CONV[self.dims](
            input, self.weight, self.bias, self.stride, padding, self.dilation, activation=self.activation
        )

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {describe(self)}"


class DepthwiseConv1d(_DepthwiseConvNd):
    """Filter each channel of a sequence on its own; see `DepthwiseConv2d`. Input [N, C, L]; "causal" padding exists here."""

    dims = 1


class DepthwiseConv2d(_DepthwiseConvNd):
    """Filter each channel on its own: torch.nn.Conv2d with one group a channel.

    Arguments follow torch.nn.Conv2d, without groups. out_channels = in_channels * depth_multiplier, where output
    c*m + j reads input c and weight is [C*m, 1, kh, kw]; or out_channels = in_channels / depth_multiplier, where each
    output sums m filtered channels and weight is [C/m, m, kh, kw]. depth_multiplier may be left to follow from the two.
    padding: an int, n ints, n pairs (before, after), "valid" or "same". activation: None, "relu", "relu6", "silu",
    "hard_swish" or "gelu".

    Shapes: input [N, in_channels, H, W] -> [N, out_channels, H', W'].

    Raises:
        InputError: an argument breaks one of these rules.

    >>> DepthwiseConv2d(8, 16, 3, padding="same")
    DepthwiseConv2d(8, 16, kernel_size=(3, 3), padding=same, depth_multiplier=2)
    """

    dims = 2


class DepthwiseConv3d(_DepthwiseConvNd):
    """Filter each channel of a volume on its own; see `DepthwiseConv2d`. Input [N, C, D, H, W]."""

    dims = 3


def check_channels(**channels: int) -> None:
    for name, value in channels.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(name, value, "must be a whole number of at least 1")


def check_padding(
    padding: Padding, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Padding:
    """The padding in the form that is kept: the word, or ints, or pairs; refused at construction, not at first use."""
    arguments.padding_pairs(padding, [1] * len(kernel_size), kernel_size, stride, dilation)
    if isinstance(padding, str):
        return padding
    pairs = arguments.fixed_pairs(padding, len(kernel_size))
    symmetric = all(before == after for before, after in pairs)
    return tuple(before for before, _ in pairs) if symmetric else pairs


def check_padding_mode(mode: str) -> str:
    if mode not in _PADDING_MODES:
        raise InputError("padding_mode", mode, f"must be one of {', '.join(_PADDING_MODES)}")
    return mode


def pad_unless_zeros(layer, input: Tensor) -> tuple[Tensor, Padding]:
    """Modes other than zeros pad ahead of the convolution, which then pads nothing."""
    if layer.padding_mode == "zeros":
        return input, layer.padding
    arguments.check_tensors(input, layer.dims)
    pairs = arguments.padding_pairs(layer.padding, input.shape[2:], layer.kernel_size, layer.stride, layer.dilation)
    return arguments.pad(input, pairs, layer.padding_mode), 0


def reset_convolution(weight: Tensor, bias: Tensor | None) -> None:
    init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(weight[0].numel())
        init.uniform_(bias, -bound, bound)


def describe(layer) -> str:
    """The arguments that differ from their defaults, as `extra_repr` shows them."""
    ones = (1,) * layer.dims
    parts = [f"kernel_size={layer.kernel_size}"]
    parts += [f"stride={layer.stride}"] if layer.stride != ones else []
    parts += [f"padding={layer.padding}"] if layer.padding != (0,) * layer.dims else []
    parts += [f"dilation={layer.dilation}"] if layer.dilation != ones else []
    parts += [f"depth_multiplier={layer.depth_multiplier}"] if layer.depth_multiplier != 1 else []
    parts += [f"padding_mode={layer.padding_mode}"] if getattr(layer, "padding_mode", "zeros") != "zeros" else []
    parts += [f"activation={layer.activation}"] if layer.activation else []
    return ", ".join(parts)
