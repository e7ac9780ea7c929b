"""Small networks of the kinds that people have, as they write them; each reads images [N, 3, h, w]."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1} | options)


class Residual(nn.Module):
    """Convolutions of every kind that the survey tells apart, around one shortcut."""

    def __init__(self, inplace=False):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 12, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = conv(12, 12, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = conv(12, 12, bias=False), nn.BatchNorm2d(12)
        self.narrow = conv(12, 12, groups=4)
        self.deep = conv(12, 12, groups=12)
        self.mix = nn.Conv2d(12, 16, 1)
        self.linear, self.inplace = nn.Linear(16, 5), inplace

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=self.inplace)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)), inplace=self.inplace)))
        if self.inplace:
            y += x
        else:
            y = x + y
        return self.linear(self.mix(F.relu(self.deep(self.narrow(F.relu(y))))).mean((2, 3)))


class Shortcut(nn.Module):
    """Two blocks; `before`: the shortcut is computed before the branch; both are convolutions of many taps."""

    def __init__(self, before=True, inplace=False):
        super().__init__()
        self.stem, self.before, self.inplace = conv(3, 8), before, inplace
        self.short = conv(8, 10, stride=2)
        self.branch = nn.Sequential(conv(8, 10, stride=2), nn.BatchNorm2d(10), nn.ReLU(inplace), conv(10, 10))
        self.last = conv(10, 10)

    def forward(self, x):
        x = F.relu(self.stem(x), inplace=self.inplace)
        if self.before:
            y = self.short(x)
            z = self.branch(x)
        else:
            z = self.branch(x)
            y = self.short(x)
        if self.inplace:
            z += y
        else:
            z = z + y
        return self.last(F.relu(z, inplace=self.inplace))


class PreActivation(nn.Module):
    """Sums are added to sums, as in pre-activation residual networks."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(10), nn.ReLU(), conv(10, 10), nn.ReLU(), conv(10, 10)) for _ in range(3)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x.mean((2, 3))


class Concatenated(nn.Module):
    """As DenseNet: each layer reads all before it."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(8 + 6 * i), nn.ReLU(True), conv(8 + 6 * i, 6))
                                    for i in range(3))  # fmt: skip

    def forward(self, x):
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1).mean((2, 3))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and the fine features beside the coarse."""

    def __init__(self):
        super().__init__()
        self.fine, self.norm = conv(3, 8), nn.BatchNorm2d(8)
        self.down = conv(8, 12, stride=2)
        self.up = nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1)
        self.out = conv(16, 6)

    def forward(self, x):
        fine = F.relu(self.norm(self.fine(x)))
        up = F.relu(self.up(F.relu(self.down(fine))))
        return self.out(torch.cat([fine, up], 1))


class Keeping(nn.Module):
    """Stores activations on itself and reads them later."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = conv(3, 8), conv(8, 8), conv(8, 8)
        self.kept = None

    def forward(self, x):
        self.kept = self.first(x)
        y = F.relu(self.second(F.relu(self.kept)))
        return self.third(y + self.kept)


class Heads(nn.Module):
    """Several outputs, in a dict and a tuple; one layer's output before its norm is an output too."""

    def __init__(self, kind="dict"):
        super().__init__()
        self.body, self.norm = conv(3, 10), nn.BatchNorm2d(10)
        self.map, self.score, self.kind = conv(10, 4), conv(10, 8, stride=2), kind

    def forward(self, x):
        raw = self.body(x)
        y = F.relu(self.norm(raw))
        found = {"map": self.map(y), "scores": [self.score(y).mean((2, 3))], "raw": raw}
        return found if self.kind == "dict" else (found["map"], (found["scores"][0], raw), 3)


class Writing(nn.Module):
    """Writes into its input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 8)

    def forward(self, x):
        x -= 0.5
        return self.second(F.relu_(self.first(x)))


class Twice(nn.Module):
    """A layer that runs twice, under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = conv(3, 8), conv(8, 8), conv(8, 8)
        self.alias = self.again

    def forward(self, x):
        return self.last(torch.tanh(self.alias(torch.tanh(self.again(torch.tanh(self.first(x)))))))


class Crossed(nn.Module):
    """Two branches whose norms run in the other order than their convolutions."""

    def __init__(self):
        super().__init__()
        self.left, self.right = conv(3, 8), conv(3, 6)
        self.left_norm, self.right_norm = nn.BatchNorm2d(8), nn.BatchNorm2d(6)
        self.last = conv(14, 6)

    def forward(self, x):
        left = self.left(x)
        right = F.relu(self.right_norm(self.right(x)))
        return self.last(torch.cat([F.relu(self.left_norm(left)), right], 1))


class Waiting(nn.Module):
    """A shortcut that waits for a branch which ends in an activation."""

    def __init__(self):
        super().__init__()
        self.short, self.branch, self.last = conv(3, 8), conv(3, 8), conv(8, 6)

    def forward(self, x):
        short = self.short(x)
        return self.last(short + torch.tanh(self.branch(x)))


class SumRead(Residual):
    """The output of a layer is added, and is also an output of the network."""

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)))))
        return x + y, y


NETWORKS = {
    "residual": Residual,
    "residual, in place": lambda: Residual(inplace=True),
    "shortcut before": Shortcut,
    "shortcut after": lambda: Shortcut(before=False),
    "shortcut after, in place": lambda: Shortcut(before=False, inplace=True),
    "shortcut before, in place": lambda: Shortcut(inplace=True),
    "sums of sums": PreActivation,
    "concatenated": Concatenated,
    "u-net": UNet,
    "keeping": Keeping,
    "dict of outputs": Heads,
    "tuple of outputs": lambda: Heads("tuple"),
    "writing": Writing,
    "twice": Twice,
    "crossed": Crossed,
    "waiting": Waiting,
    "sum and branch are outputs": SumRead,
}


def settled(network: nn.Module, x: torch.Tensor) -> nn.Module:
    """In eval mode, with batch-norm statistics of its own activations."""
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(x.clone())
    return network.eval()


def smooth(number: int = 48, size: int = 12) -> torch.Tensor:
    """Images [N, 3, size, size], neighbours alike."""
    return smooth_of((number, 3, size, size))


def smooth_of(shape: tuple[int, ...]) -> torch.Tensor:
    """Sound, images or volumes [N, C, *size], neighbours alike."""
    dims = len(shape) - 2
    noise = torch.randn(*shape[:2], *(length + 4 for length in shape[2:]))
    return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1](noise, 5, 1) * 5 ** (dims / 2)
