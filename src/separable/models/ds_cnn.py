"""DS-CNN: keywords from a small picture of sound; one dense layer, depthwise separable ones, a mean, scores.

In the paper 49 frames of 10 MFCC and 12 classes; the mean over the last maps lets other sizes in.
Source: Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers", arXiv:1711.07128, section 4 and table 3;
strides as the authors set them: first layer (2, 2) in the small network; (2, 1), then (2, 2), in the others.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from separable.errors import InputError
from separable.layers import DepthwiseConv2d, mobilenet_v1_block
from separable.layers.depthwise import check_channels
from separable.layers.norm import normalize
from separable.models.folding import fold_after, fold_inside
from separable.models.initialization import initialize

# channels, separable blocks, stride of the first layer over (frames, coefficients), of the first block
_SIZES = {"small": (64, 4, (2, 2), 1), "medium": (172, 4, (2, 1), 2), "large": (276, 5, (2, 1), 2)}


class DSCNN(nn.Module):
    """Features of sound to class scores.

    Args:
        size: "small", "medium" or "large": 22,604, 135,032, 410,700 parameters and 2.7, 9.8, 28.3 M multiply-adds in
            the paper's setting, with batch norm folded.
        num_classes: outputs of the last layer.

    Shapes: [N, frames, size of a frame] -> [N, num_classes].

    Raises:
        InputError: an argument breaks one of these rules.

    >>> DSCNN("small")(torch.zeros(2, 49, 10)).shape
    torch.Size([2, 12])
    """

    def __init__(self, size: str = "small", num_classes: int = 12):
        super().__init__()
        check_channels(num_classes=num_classes)
        if size not in _SIZES:
            raise InputError("size", size, f"must be one of {', '.join(_SIZES)}")
        channels, blocks, stem_stride, block_stride = _SIZES[size]
        # of one channel, a dense convolution and a depthwise one of this multiplier are the same
        self.conv_stem = DepthwiseConv2d(1, channels, (10, 4), stem_stride, padding="same", bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(channels)
        strides = [block_stride] + [1] * (blocks - 1)
        self.blocks = nn.Sequential(*(mobilenet_v1_block(channels, channels, stride) for stride in strides))
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, features: Tensor) -> Tensor:
        x = self.conv_stem(features.unsqueeze(1))  # [N, C, T', F']
        x = self.blocks(normalize(self.bn1, x, "relu"))  # [N, C, T'', F'']
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)  # [N, C]
        return self.classifier(x)

    def folded(self) -> "DSCNN":
        """A copy for inference whose batch norms are part of the convolutions before them; the same outputs."""
        other = copy.deepcopy(self).eval()
        other.bn1 = fold_after(other.conv_stem, other.bn1)
        for block in other.blocks:
            fold_inside(block)
        return other
