"""MobileNetV1: a dense stem, thirteen depthwise separable blocks, one linear layer.

569 M multiply-adds at 224x224 and 4.2 M parameters at width 1. The paper draws ReLU; the authors' code, and whoever
published weights since, clips it at 6, and so does this network.
Source: Howard et al. 2017, "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
arXiv:1704.04861, table 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from separable.layers import mobilenet_v1_block
from separable.layers.depthwise import check_channels
from separable.layers.norm import normalize
from separable.models.initialization import initialize
from separable.models.scaling import scale_channels, thin_strides

# (channels, blocks, stride of the first block) of each stage; 32 channels come out of the stem
_STAGES = [(64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2)]


class MobileNetV1(nn.Module):
    """Images to class scores.

    Args:
        num_classes: outputs of the last layer.
        in_channels: 3 for colour, 1 for grey.
        width_multiplier: channels of every layer, times this; 1, 0.75, 0.5 and 0.25 in the paper.
        reduction: how many times smaller the last maps are than the image: 32 in the paper, for 224x224. For 32x32
            images 8 leaves maps of 4x4; the first strides then become 1, and no weight changes its shape.

    Shapes: [N, in_channels, H, W] -> [N, num_classes].

    Raises:
        InputError: an argument breaks one of these rules.

    >>> network = MobileNetV1(num_classes=10, in_channels=1, width_multiplier=0.25, reduction=8)
    >>> network(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, width_multiplier: float = 1.0, reduction: int = 32
    ):
        super().__init__()
        check_channels(num_classes=num_classes, in_channels=in_channels)
        stem_stride, *strides = thin_strides([2, *(stride for _, _, stride in _STAGES)], reduction)
        channels = scale_channels(32, width_multiplier)
        self.conv_stem = nn.Conv2d(in_channels, channels, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for (width, count, _), stride in zip(_STAGES, strides, strict=True):
            blocks = []
            for i in range(count):
                out_channels = scale_channels(width, width_multiplier)
                first = stride if i == 0 else 1
                blocks.append(mobilenet_v1_block(channels, out_channels, first, activation="relu6"))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        x = normalize(self.bn1, self.conv_stem(images), "relu6")  # [N, 32, H/2, W/2]
        x = self.blocks(x)  # [N, 1024, H/32, W/32]
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)  # [N, 1024]
        return self.classifier(x)
