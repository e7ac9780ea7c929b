"""ResNet-20 for CIFAR-10: the FILE.py of `separable convert benchmarks/resnet20.py:resnet20 --weights ... --data ...`.

Depth 6n+2 with n = 3, widths 16, 32, 64; the shortcut has no parameters: every second pixel, channels padded with zeros
on both sides; the mean over the image comes before `linear`. 269,722 parameters, 40.55 M MACs at 32x32.
Source: He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2, option A.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

preprocess = {"size": 32, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def shortcut(x: Tensor, stride: int, extra_channels: int) -> Tensor:
    """Every stride-th pixel, channels of zeros on both sides; [N, C, H, W] -> [N, C + extra, H/stride, W/stride]."""
    if not extra_channels and stride == 1:
        return x
    before = extra_channels // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, extra_channels - before))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; [N, in_channels, H, W] -> [N, channels, H/stride, W/stride]."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.extra_channels = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + shortcut(x, self.stride, self.extra_channels))


class ResNet20(nn.Module):
    """[N, 3, 32, 32] -> [N, 10] logits."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[BasicBlock(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.mean(x, (2, 3)))


def resnet20() -> ResNet20:
    """The network with random weights."""
    return ResNet20()
