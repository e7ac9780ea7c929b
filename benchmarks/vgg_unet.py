"""A text detector's network, as many run it on CPUs: VGG-16 with batch norm as a U-net, after CRAFT; random weights.

Source: Baek et al. 2019, "Character Region Awareness for Text Detection", arXiv:1904.01941. 20.8 M parameters,
23.3 GMACs at 256x256: 3x3 convolutions on large maps, one dilated, joins with skips after bilinear resizing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = ((64, 64, 128, 128), (256, 256), (256, 512, 512), (512, 512, 512))  # channels between two skips
_POOLED_BEFORE = ({2}, {0}, {1}, {1})  # which of these convolutions follow a pooling


def _normed(in_channels: int, out_channels: int, kernel_size: int = 3, activation: bool = True) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return [conv, nn.BatchNorm2d(out_channels), *([nn.ReLU(inplace=True)] if activation else [])]


class VGGUNet(nn.Module):
    """images [N, 3, H, W] -> maps [N, H/2, W/2, 2]"""

    def __init__(self):
        super().__init__()
        channels, stages = 3, []
        for widths, pooled in zip(_STAGES, _POOLED_BEFORE, strict=True):
            layers: list[nn.Module] = [nn.ReLU(inplace=True)] if stages else []
            for i, width in enumerate(widths):
                layers += [nn.MaxPool2d(2)] * (i in pooled)
                layers += _normed(channels, width, activation=i < len(widths) - 1)
                channels = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.deepest = nn.Sequential(
            nn.MaxPool2d(3, 1, 1), nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
        )
        ups = ((1024 + 512, 512, 256), (256 + 512, 256, 128), (128 + 256, 128, 64), (64 + 128, 64, 32))
        self.ups = nn.ModuleList(nn.Sequential(*_normed(i, m, 1), *_normed(m, o)) for i, m, o in ups)
        head: list[nn.Module] = []
        for i, o, k in ((32, 32, 3), (32, 32, 3), (32, 16, 3), (16, 16, 1)):
            head += [nn.Conv2d(i, o, k, padding=k // 2), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*head, nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        x = self.deepest(x)
        for up in self.ups:
            skip = skips.pop()
            if x.shape[2:] != skip.shape[2:]:
                x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = up(torch.cat([x, skip], 1))
        return self.head(x).permute(0, 2, 3, 1)
