"""The blocks that depthwise separable networks are made of, each as its paper draws it.

Every block maps [N, C_in, H, W] to [N, C_out, H', W'] with H' = ceil(H / stride), and pads by kernel_size // 2 on all
sides, as PyTorch's ports do. Submodules carry timm's names where timm has the block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from separable.errors import InputError
from separable.functional import arguments
from separable.layers.depthwise import DepthwiseConv2d, check_channels
from separable.layers.norm import normalize
from separable.layers.separable import SeparableConv2d


def mobilenet_v1_block(
    in_channels: int, out_channels: int, stride: int = 1, *, activation: str = "relu"
) -> SeparableConv2d:
    """Depthwise 3x3, batch norm, ReLU, pointwise, batch norm, ReLU: one `SeparableConv2d`, so this is a function.

    Source: Howard et al. 2017, "MobileNets", arXiv:1704.04861, section 3.2 and figure 3 (right).

    >>> mobilenet_v1_block(32, 64, stride=2)(torch.zeros(1, 32, 14, 14)).shape
    torch.Size([1, 64, 7, 7])
    """
    return SeparableConv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        bias=False,
        inner_norm=nn.BatchNorm2d,
        inner_activation=activation,
        norm=nn.BatchNorm2d,
        activation=activation,
    )


class InvertedResidual(nn.Module):
    """Widen with a pointwise convolution, filter depthwise, narrow without an activation; add the input where it fits.

    Args:
        expanded_channels: width of the depthwise convolution, t * C_in in the paper. Equal to in_channels (t = 1), the
            first pointwise convolution is left out.
        activation: after the first and the depthwise convolution: "relu6" in MobileNetV2, "relu" or "hard_swish" in V3.
        squeeze_channels: with a `SqueezeExcite` of this width after the depthwise convolution (V3); None: without.

    The input is added when stride is 1 and in_channels equals out_channels.

    Source: Sandler et al. 2018, "MobileNetV2", arXiv:1801.04381, section 3.3, table 1 and figure 4d; Howard et al.
    2019, "Searching for MobileNetV3", arXiv:1905.02244, sections 5.2 and 5.3 and figure 4.

    >>> InvertedResidual(16, 24, expanded_channels=96, stride=2)(torch.zeros(1, 16, 14, 14)).shape
    torch.Size([1, 24, 7, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expanded_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        activation: str = "relu6",
        squeeze_channels: int | None = None,
    ):
        super().__init__()
        _check_block(in_channels, out_channels, kernel_size, expanded_channels=expanded_channels, stride=stride)
        arguments.check_activation("activation", activation)
        self.activation, self.adds_input = activation, stride == 1 and in_channels == out_channels
        expands = expanded_channels != in_channels
        self.conv_pw = nn.Conv2d(in_channels, expanded_channels, 1, bias=False) if expands else None
        self.bn1 = nn.BatchNorm2d(expanded_channels) if expands else None
        self.conv_dw = DepthwiseConv2d(
            expanded_channels, expanded_channels, kernel_size, stride, kernel_size // 2, bias=False
        )
        self.bn2 = nn.BatchNorm2d(expanded_channels)
        self.se = None if squeeze_channels is None else SqueezeExcite(expanded_channels, squeeze_channels)
        self.conv_pwl = nn.Conv2d(expanded_channels, out_channels, 1, bias=False)  # l for linear
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        x = input  # [N, C_in, H, W]
        if self.conv_pw is not None and self.bn1 is not None:
            x = normalize(self.bn1, self.conv_pw(x), self.activation)  # [N, expanded, H, W]
        x = normalize(self.bn2, self.conv_dw(x), self.activation)  # [N, expanded, H', W']
        if self.se is not None:
            x = self.se(x)
        x = self.bn3(self.conv_pwl(x))  # [N, C_out, H', W']
        return input + x if self.adds_input else x


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in 0..1 computed from the means of all channels, through a narrow layer.

    Shapes: [N, C, H, W] -> [N, C, H, W]. The gate is the hard sigmoid relu6(x + 3) / 6, as in MobileNetV3.

    Source: Hu et al. 2018, "Squeeze-and-Excitation Networks", arXiv:1709.01507, section 3; the gate: Howard et al.
    2019, arXiv:1905.02244, section 5.2.

    >>> SqueezeExcite(64, 16)(torch.zeros(1, 64, 7, 7)).shape
    torch.Size([1, 64, 7, 7])
    """

    def __init__(self, channels: int, squeeze_channels: int):
        super().__init__()
        check_channels(channels=channels, squeeze_channels=squeeze_channels)
        self.conv_reduce = nn.Conv2d(channels, squeeze_channels, 1)
        self.conv_expand = nn.Conv2d(squeeze_channels, channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(input, 1)  # [N, C, 1, 1]
        gate = F.hardsigmoid(self.conv_expand(F.relu(self.conv_reduce(means))))  # [N, C, 1, 1]
        return input * gate


class XceptionBlock(nn.Module):
    """ReLU, separable 3x3 and batch norm, several times; with a stride, a max pooling; the input added around it all.

    There is no activation between the depthwise and the pointwise half: the paper found that it hurts (section 4.7).

    Args:
        widths: output channels of each separable convolution; the last are the block's. (728, 728, 728) in the middle
            flow, (728, 1024) in the exit flow.
        stride: of the max pooling, and of the pointwise shortcut, which is there when stride or channels differ.
        starts_with_relu: False in the first block of the network, whose input comes out of a ReLU.

    Source: Chollet 2017, "Xception", arXiv:1610.02357, section 3 and figure 5.

    >>> XceptionBlock(64, (128, 128), stride=2)(torch.zeros(1, 64, 14, 14)).shape
    torch.Size([1, 128, 7, 7])
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...], stride: int = 1, *, starts_with_relu: bool = True):
        super().__init__()
        if not widths:
            raise InputError("widths", widths, "must name the output channels of at least one convolution")
        check_channels(stride=stride)
        self.starts_with_relu, out_channels = starts_with_relu, widths[-1]
        ends = zip((in_channels, *widths), widths)  # noqa: B905 - one longer by design
        self.convs = nn.ModuleList(
            SeparableConv2d(a, b, 3, padding=1, bias=False, norm=nn.BatchNorm2d) for a, b in ends
        )
        self.pool = nn.MaxPool2d(3, stride, padding=1) if stride != 1 else None
        shortcut = stride != 1 or in_channels != out_channels
        self.skip = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if shortcut else None
        self.skipbn = nn.BatchNorm2d(out_channels) if shortcut else None

    def forward(self, input: Tensor) -> Tensor:
        x = input  # [N, C_in, H, W]
        for i, conv in enumerate(self.convs):
            x = conv(F.relu(x) if i or self.starts_with_relu else x)  # [N, widths[i], H, W]
        if self.pool is not None:
            x = self.pool(x)  # [N, C_out, H', W']
        if self.skip is not None and self.skipbn is not None:
            return x + self.skipbn(self.skip(input))
        return x + input


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, layer norm over channels, two linear layers with a GELU between, scaled and added to the input.

    Args:
        channels: in and out.
        kernel_size: odd.
        expand_ratio: width of the hidden layer over channels.
        layer_scale: initial value of the learned scale of each channel; small, so that the block starts near identity.

    Shapes: [N, C, H, W] -> [N, C, H, W].

    Source: Liu et al. 2022, "A ConvNet for the 2020s", arXiv:2201.03545, section 2 and figure 4; section 3.1 (scale).

    >>> ConvNeXtBlock(96)(torch.zeros(1, 96, 14, 14)).shape
    torch.Size([1, 96, 14, 14])
    """

    def __init__(self, channels: int, kernel_size: int = 7, expand_ratio: int = 4, layer_scale: float = 1e-6):
        super().__init__()
        _check_block(channels, channels, kernel_size, expand_ratio=expand_ratio)
        self.conv_dw = DepthwiseConv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc1 = nn.Linear(channels, channels * expand_ratio)
        self.fc2 = nn.Linear(channels * expand_ratio, channels)
        self.gamma = nn.Parameter(torch.full((channels,), float(layer_scale)))

    def forward(self, input: Tensor) -> Tensor:
        x = self.conv_dw(input).permute(0, 2, 3, 1)  # [N, H, W, C]: norm and linear work on the last dimension
        x = self.fc2(F.gelu(self.fc1(self.norm(x))))  # [N, H, W, C]
        return input + (self.gamma * x).permute(0, 3, 1, 2)


def _check_block(in_channels: int, out_channels: int, kernel_size: int, **others: int) -> None:
    check_channels(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, **others)
    if kernel_size % 2 == 0:
        raise InputError("kernel_size", kernel_size, "must be odd, so that the window has a middle")
