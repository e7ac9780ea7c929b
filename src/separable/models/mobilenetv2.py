"""MobileNetV2: seventeen inverted residuals with linear bottlenecks.

301 M multiply-adds at 224x224 (300 in the paper) and 3.5 M parameters at width 1.
Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381, table 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from separable.layers import InvertedResidual
from separable.layers.depthwise import check_channels
from separable.layers.norm import normalize
from separable.models.initialization import initialize
from separable.models.scaling import scale_channels, thin_strides

# (expansion t, channels c, blocks n, stride s of the first block) of each stage, as in the table
_STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class MobileNetV2(nn.Module):
    """Images to class scores.

    Args:
        num_classes: outputs of the last layer.
        in_channels: 3 for colour, 1 for grey.
        width_multiplier: channels of every layer, times this; the last 1280 are kept below 1, as in the paper.
        dropout: before the last layer, as in the authors' code.
        reduction: how many times smaller the last maps are than the image: 32 in the paper, for 224x224. For 32x32
            images 8 leaves maps of 4x4; the first strides then become 1, and no weight changes its shape.

    Shapes: [N, in_channels, H, W] -> [N, num_classes].

    Raises:
        InputError: an argument breaks one of these rules.

    >>> MobileNetV2(num_classes=10, width_multiplier=0.35, reduction=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

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
        stem_stride, *strides = thin_strides([2, *(stride for *_, stride in _STAGES)], reduction)
        channels = scale_channels(32, width_multiplier)
        self.conv_stem = nn.Conv2d(in_channels, channels, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for (expand_ratio, width, count, _), stride in zip(_STAGES, strides, strict=True):
            blocks = []
            for i in range(count):
                out_channels = scale_channels(width, width_multiplier)
                first = stride if i == 0 else 1
                blocks.append(InvertedResidual(channels, out_channels, channels * expand_ratio, stride=first))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        features = scale_channels(1280, max(1.0, width_multiplier))
        self.conv_head = nn.Conv2d(channels, features, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        x = normalize(self.bn1, self.conv_stem(images), "relu6")  # [N, 32, H/2, W/2]
        x = self.blocks(x)  # [N, 320, H/32, W/32]
        x = normalize(self.bn2, self.conv_head(x), "relu6")  # [N, 1280, H/32, W/32]
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)  # [N, 1280]
        return self.classifier(self.dropout(x))
