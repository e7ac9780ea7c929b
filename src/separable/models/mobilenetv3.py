"""MobileNetV3, large and small: inverted residuals with squeeze-excite and hard-swish, found by search.

At 224x224 and width 1: large 217 M multiply-adds (219 in the paper) and 5.5 M parameters, small 57 M (56) and 2.5 M.
Source: Howard et al. 2019, "Searching for MobileNetV3", arXiv:1905.02244, tables 1 and 2.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from separable.layers import InvertedResidual
from separable.layers.depthwise import check_channels
from separable.models.initialization import initialize
from separable.models.scaling import scale_channels, thin_strides


class _Row(NamedTuple):
    """A row of the paper's table: kernel, expansion size, channels out, squeeze-excite, hard-swish, stride."""

    kernel_size: int
    expanded: int
    channels: int
    squeezes: bool
    hard_swish: bool
    stride: int


class _MobileNetV3(nn.Module):
    stages: ClassVar[list[list[_Row]]]
    features: ClassVar[int]

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width_multiplier: float = 1.0,
        dropout: float = 0.2,
        reduction: int = 32,
    ):
        super().__init__()
        check_channels(num_classes=num_classes, in_channels=in_channels)
        rows = [row for stage in self.stages for row in stage]
        stem_stride, *thinned = thin_strides([2, *(row.stride for row in rows)], reduction)
        strides = iter(thinned)
        channels = scale_channels(16, width_multiplier)
        self.conv_stem = nn.Conv2d(in_channels, channels, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for stage in self.stages:
            blocks = []
            for row in stage:
                blocks.append(_block(channels, row, next(strides), width_multiplier))
                channels = scale_channels(row.channels, width_multiplier)
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        wide = scale_channels(rows[-1].expanded, width_multiplier)  # the last convolution is as wide as the last block
        self.conv_last = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        features = scale_channels(self.features, max(1.0, width_multiplier))
        self.conv_head = nn.Conv2d(wide, features, 1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.hardswish(self.bn1(self.conv_stem(images)))  # [N, 16, H/2, W/2]
        x = self.blocks(x)  # [N, C, H/32, W/32]
        x = F.hardswish(self.bn2(self.conv_last(x)))  # [N, 6*C, H/32, W/32]
        x = F.adaptive_avg_pool2d(x, 1)  # pooled before the head, which then costs one pixel (section 5.1)
        x = torch.flatten(F.hardswish(self.conv_head(x)), 1)  # [N, features]
        return self.classifier(self.dropout(x))


def _block(in_channels: int, row: _Row, stride: int, width_multiplier: float) -> InvertedResidual:
    expanded = scale_channels(row.expanded, width_multiplier)
    return InvertedResidual(
        in_channels,
        scale_channels(row.channels, width_multiplier),
        expanded,
        row.kernel_size,
        stride,
        activation="hard_swish" if row.hard_swish else "relu",
        squeeze_channels=scale_channels(expanded, 0.25) if row.squeezes else None,
    )


class MobileNetV3Large(_MobileNetV3):
    """Images to class scores; the larger of the two, table 1 of the paper.

    Args:
        num_classes: outputs of the last layer.
        in_channels: 3 for colour, 1 for grey.
        width_multiplier: channels of every layer, times this; the features before the last layer are kept below 1.
        dropout: before the last layer.
        reduction: how many times smaller the last maps are than the image: 32 in the paper, for 224x224. For 32x32
            images 8 leaves maps of 4x4; the first strides then become 1, and no weight changes its shape.

    Shapes: [N, in_channels, H, W] -> [N, num_classes].

    Raises:
        InputError: an argument breaks one of these rules.

    >>> MobileNetV3Large(num_classes=10, width_multiplier=0.5, reduction=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    features = 1280
    stages: ClassVar = [
        [_Row(3, 16, 16, False, False, 1)],
        [_Row(3, 64, 24, False, False, 2), _Row(3, 72, 24, False, False, 1)],
        [_Row(5, 72, 40, True, False, 2), *[_Row(5, 120, 40, True, False, 1)] * 2],
        [_Row(3, 240, 80, False, True, 2), _Row(3, 200, 80, False, True, 1), *[_Row(3, 184, 80, False, True, 1)] * 2],
        [_Row(3, 480, 112, True, True, 1), _Row(3, 672, 112, True, True, 1)],
        [_Row(5, 672, 160, True, True, 2), *[_Row(5, 960, 160, True, True, 1)] * 2],
    ]


class MobileNetV3Small(_MobileNetV3):
    """Images to class scores; the smaller of the two, table 2 of the paper. Arguments as in `MobileNetV3Large`.

    >>> MobileNetV3Small(num_classes=10, in_channels=1, reduction=8)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    features = 1024
    stages: ClassVar = [
        [_Row(3, 16, 16, True, False, 2)],
        [_Row(3, 72, 24, False, False, 2), _Row(3, 88, 24, False, False, 1)],
        [_Row(5, 96, 40, True, True, 2), *[_Row(5, 240, 40, True, True, 1)] * 2],
        [_Row(5, 120, 48, True, True, 1), _Row(5, 144, 48, True, True, 1)],
        [_Row(5, 288, 96, True, True, 2), *[_Row(5, 576, 96, True, True, 1)] * 2],
    ]
