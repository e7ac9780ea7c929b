"""Two other things that a widely read tutorial calls depthwise separable convolution, kept so that anyone can compare.

docs/what-is-separable.md derives what each costs; `SeparableConv2d` is what the field means by the words.
"""

from torch import Tensor, nn

from separable.functional import arguments
from separable.functional.arguments import Size
from separable.layers.depthwise import DepthwiseConv2d, check_channels


class StackedConv2d(nn.Module):
    """The tutorial's code: two dense k x k convolutions in a row. It saves nothing; it is the dearer of the three.

    H*W * k² * C_out * (C_in + C_out) multiply-adds. Shapes: [N, C_in, H, W] -> [N, C_out, H, W], "same" padding.

    Raises:
        InputError: a number of channels or a kernel that is no whole number of at least 1.

    >>> import torch
    >>> StackedConv2d(64, 64, 3)(torch.zeros(1, 64, 8, 8)).shape
    torch.Size([1, 64, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size, bias: bool = True):
        super().__init__()
        check_channels(in_channels=in_channels, out_channels=out_channels)
        kernel = arguments.per_dimension("kernel_size", kernel_size, dims=2)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, padding="same", bias=bias)  # type: ignore[arg-type]
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding="same", bias=bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        return self.conv2(self.conv1(input))


class GatedSeparableConv2d(nn.Module):
    """The tutorial's steps: u = conv_pw(conv_dw(x)), then y = u * conv_spatial(u), a second depthwise filter as a gate.

    H*W * (k² * C_in + C_in * C_out + k² * C_out) multiply-adds, and H*W * C_out products of the two maps.
    Shapes: [N, C_in, H, W] -> [N, C_out, H, W], "same" padding. There is no sigmoid.

    Raises:
        InputError: a number of channels or a kernel that is no whole number of at least 1.

    >>> import torch
    >>> GatedSeparableConv2d(64, 64, 3)(torch.zeros(1, 64, 8, 8)).shape
    torch.Size([1, 64, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size, bias: bool = True):
        super().__init__()
        check_channels(in_channels=in_channels, out_channels=out_channels)
        self.conv_dw = DepthwiseConv2d(in_channels, in_channels, kernel_size, padding="same", bias=False)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.conv_spatial = DepthwiseConv2d(out_channels, out_channels, kernel_size, padding="same", bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        u = self.conv_pw(self.conv_dw(input))  # [N, C_out, H, W]
        return u * self.conv_spatial(u)
