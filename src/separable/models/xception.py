"""Xception: depthwise separable convolutions all the way, with residual connections.

22.9 M parameters; 8.36 G multiply-adds at 299x299, the size it was published for.
Source: Chollet 2017, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357, figure 5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from separable.layers import SeparableConv2d, XceptionBlock
from separable.layers.depthwise import check_channels
from separable.layers.norm import normalize
from separable.models.initialization import initialize
from separable.models.scaling import thin_strides

# (widths of the separable convolutions, stride) of each block: entry flow, eight times the middle flow, exit flow
_BLOCKS = [((128, 128), 2), ((256, 256), 2), ((728, 728), 2), *[((728, 728, 728), 1)] * 8, ((728, 1024), 2)]


class Xception(nn.Module):
    """Images to class scores.

    Args:
        num_classes: outputs of the last layer.
        in_channels: 3 for colour, 1 for grey.
        dropout: before the last layer; 0.5 in the paper (section 4.3.2).
        reduction: how many times smaller the last maps are than the image, about: 32 in the paper, for 299x299. For
            32x32 images 8 leaves maps of 4x4; the first strides then become 1, and no weight changes its shape.

    Shapes: [N, in_channels, H, W] -> [N, num_classes]. The two convolutions of the stem are not padded.

    Raises:
        InputError: an argument breaks one of these rules.

    >>> Xception(num_classes=10, reduction=8)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, reduction: int = 32):
        super().__init__()
        check_channels(num_classes=num_classes, in_channels=in_channels)
        stem_stride, *strides = thin_strides([2, *(stride for _, stride in _BLOCKS)], reduction)
        self.conv1 = nn.Conv2d(in_channels, 32, 3, stem_stride, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        channels = 64
        blocks: list[XceptionBlock] = []
        for (widths, _), stride in zip(_BLOCKS, strides, strict=True):
            blocks.append(XceptionBlock(channels, widths, stride, starts_with_relu=bool(blocks)))
            channels = widths[-1]
        self.blocks = nn.Sequential(*blocks)
        self.conv3 = _separable(1024, 1536)
        self.conv4 = _separable(1536, 2048)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2048, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        x = normalize(self.bn1, self.conv1(images), "relu")  # [N, 32, H/2, W/2]
        x = normalize(self.bn2, self.conv2(x), "relu")  # [N, 64, H/2, W/2]
        x = self.blocks(x)  # [N, 1024, H/32, W/32]
        x = self.conv4(self.conv3(x))  # [N, 2048, H/32, W/32]
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)  # [N, 2048]
        return self.classifier(self.dropout(x))


def _separable(in_channels: int, out_channels: int) -> SeparableConv2d:
    return SeparableConv2d(in_channels, out_channels, 3, padding=1, bias=False, norm=nn.BatchNorm2d, activation="relu")
