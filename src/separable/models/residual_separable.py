"""A compact residual network for small images, shaped by what costs time on a processor.

Depthwise filters and norms move much memory for little arithmetic, so the images are halved at once, each block filters
its narrow side alone, and nearly all multiply-adds are pointwise.
Source: the block is Liu et al. 2022, "A ConvNet for the 2020s", arXiv:2201.03545, figure 4, with one batch norm, last
in its branch and scaled from zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1), for layer norm and layer scale.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import init

from separable.errors import InputError
from separable.layers import SeparableConv2d
from separable.layers.depthwise import check_channels
from separable.layers.norm import normalize
from separable.models.initialization import initialize


class WideningBlock(nn.Module):
    """Input + norm(narrow(relu(separable(input)))): the pointwise half widens `expand_ratio` times, the next narrows.

    Shapes: [N, C, H, W] -> [N, C, H, W].

    >>> import torch
    >>> WideningBlock(48)(torch.zeros(1, 48, 14, 14)).shape
    torch.Size([1, 48, 14, 14])
    """

    def __init__(self, channels: int, kernel_size: int = 3, expand_ratio: int = 2):
        super().__init__()
        check_channels(channels=channels, expand_ratio=expand_ratio)
        if kernel_size % 2 == 0:
            raise InputError("kernel_size", kernel_size, "must be odd, so that the window has a middle")
        wide, padding = channels * expand_ratio, kernel_size // 2
        self.widen = SeparableConv2d(channels, wide, kernel_size, padding=padding, activation="relu")
        self.narrow = nn.Conv2d(wide, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.norm(self.narrow(self.widen(input)))


class ResidualSeparable(nn.Module):
    """Images to class scores.

    Args:
        num_classes: outputs of the last layer.
        in_channels: 3 for colour, 1 for grey.
        widths: channels of each stage; the first sees half the image's side, each later one half of that before it.
        depths: blocks of each stage.
        kernel_size: of the depthwise filters.
        expand_ratio: how much wider a block is inside.
        dropout: before the last layer.

    Shapes: [N, in_channels, H, W] -> [N, num_classes].

    Raises:
        InputError: an argument breaks one of these rules.

    >>> import torch
    >>> ResidualSeparable(num_classes=10, in_channels=1)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (48, 96),
        depths: Sequence[int] = (2, 3),
        kernel_size: int = 3,
        expand_ratio: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_channels(num_classes=num_classes, in_channels=in_channels)
        if len(widths) != len(depths) or not widths:
            rule = f"must say how many blocks each of the widths {tuple(widths)} has"
            raise InputError("depths", tuple(depths), rule)
        channels = widths[0]
        self.conv_stem = nn.Conv2d(in_channels, channels, 6, 2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages: list[nn.Module] = []
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks: list[nn.Module] = []
            if i:  # pooled first, so that the pointwise convolution costs a quarter
                blocks += [nn.AvgPool2d(2), nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
            blocks += [WideningBlock(width, kernel_size, expand_ratio) for _ in range(depth)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self)
        for module in self.modules():
            if isinstance(module, WideningBlock):
                init.zeros_(module.norm.weight)  # each block begins as the identity

    def forward(self, images: Tensor) -> Tensor:
        x = normalize(self.bn1, self.conv_stem(images), "relu")  # [N, widths[0], H/2, W/2]
        x = self.stages(x)  # [N, widths[-1], H/2^S, W/2^S] for S stages
        x = x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)  # [N, widths[-1]]; so that its gradient stays channels_last
        return self.classifier(self.dropout(x))
