"""Networks of kinds that `networks` has not: other sizes than images, several inputs, heads, and layers that stay."""

import torch
import torch.nn.functional as F
import torchvision
from networks import conv, smooth, smooth_of
from torch import Tensor, nn
from torchvision.models import regnet


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = conv(3, 12), conv(12, 12), nn.BatchNorm2d(12)
        self.squeeze, self.excite, self.linear = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), nn.Linear(12, 5)

    def forward(self, x):
        y = F.relu(self.norm(self.second(F.relu(self.first(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.linear((y * gate).mean((2, 3)))


class Shuffled(nn.Module):
    """Half of the channels goes on as it is; then channels change places."""

    def __init__(self):
        super().__init__()
        self.first, self.side, self.grouped, self.last = conv(3, 16), conv(8, 8), conv(16, 16, groups=2), conv(16, 6)

    def forward(self, x):
        left, right = F.relu(self.first(x)).chunk(2, 1)
        x = torch.cat([left, F.relu(self.side(right))], 1)
        x = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.last(F.relu(self.grouped(x)))


class Recurrent(nn.Module):
    """Sound, and a recurrent layer after the convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 12, 9, stride=2, padding=4), nn.BatchNorm1d(12)
        self.second, self.gru = nn.Conv1d(12, 16, 5, padding=2), nn.GRU(16, 8, batch_first=True)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        return self.gru(x.transpose(1, 2))[0][:, -1]


class Causal(nn.Module):
    """As WaveNet. Twelve channels of a layer that reads only six values: most tell nothing of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 12, 3), nn.Conv1d(12, 2, 3, padding=1)
        self.gated = nn.ModuleList(nn.Conv1d(12, 24, 3, dilation=2**i) for i in range(2))

    def forward(self, x):
        x = self.first(F.pad(x, (2, 0)))
        for i, layer in enumerate(self.gated):
            value, gate = layer(F.pad(x, (2 * 2**i, 0))).chunk(2, 1)
            x = x + torch.tanh(value) * torch.sigmoid(gate)
        return self.last(x)


class Video(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv3d(3, 10, 3, padding=1), nn.BatchNorm3d(10)
        self.space = nn.Conv3d(10, 10, (1, 3, 3), padding=(0, 1, 1))
        self.time, self.linear = nn.Conv3d(10, 10, (3, 1, 1), padding=(1, 0, 0)), nn.Linear(10, 5)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.norm(self.first(x))), (1, 2, 2))
        return self.linear(F.relu(self.time(F.relu(self.space(x)))).mean((2, 3, 4)))


class Frames(nn.Module):
    """Layers of images read all frames of a video as one batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.time = conv(3, 10), conv(10, 10), nn.Conv1d(10, 10, 3, padding=1)

    def forward(self, x):
        frames = x.transpose(1, 2).flatten(0, 1)
        y = F.relu(self.second(F.relu(self.first(frames)))).mean((2, 3)).unflatten(0, (len(x), -1))
        return self.time(y.transpose(1, 2)).mean(2)


class OneByOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 8)

    def forward(self, x):
        return torch.cat([self.second(F.relu(self.first(one))) for one in x.split(1)])


class Scales(nn.Module):
    """As YOLO: maps of two scales, and boxes of both in one row."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = conv(3, 8, stride=2), conv(8, 12), conv(12, 16, stride=2)
        self.lateral, self.mixed = nn.Conv2d(16, 12, 1), conv(24, 12)
        self.heads = nn.ModuleList([conv(12, 14), conv(16, 14)])

    def forward(self, x):
        fine = F.silu(self.second(F.silu(self.first(x))))
        coarse = F.silu(self.third(fine))
        up = F.interpolate(self.lateral(coarse), size=fine.shape[2:])
        maps = [F.silu(self.mixed(torch.cat([up, fine], 1))), coarse]
        found = [h(y).unflatten(1, (2, 7)).permute(0, 1, 3, 4, 2) for h, y in zip(self.heads, maps, strict=True)]
        return torch.cat([y.sigmoid().flatten(1, 3) for y in found], 1), found


class Detector(nn.Module):
    """As SSD: scores and boxes of all places in a dict, and one box head for both scales."""

    def __init__(self):
        super().__init__()
        self.body, self.extra, self.boxes = conv(3, 12, stride=2), conv(12, 12, stride=2), conv(12, 8)
        self.scores = nn.ModuleList([conv(12, 6), conv(12, 6)])

    def forward(self, x):
        fine = F.relu6(self.body(x))
        maps = [fine, F.relu6(self.extra(fine))]
        scores = [head(y).flatten(2).mT for head, y in zip(self.scores, maps, strict=True)]
        boxes = [self.boxes(y).flatten(2).mT for y in maps]
        return {"scores": torch.cat(scores, 1), "boxes": torch.cat(boxes, 1), "maps": maps}


class GroupNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = conv(3, 12), nn.GroupNorm(3, 12), conv(12, 12)
        self.third, self.last = conv(12, 8), nn.LayerNorm(8)

    def forward(self, x):
        y = F.relu(self.norm(self.first(x)))
        return self.last(self.third(y + F.gelu(self.second(y))).permute(0, 2, 3, 1))


class TwoInputs(nn.Module):
    """Takes a second input, writes into it, and takes a third by name only."""

    def __init__(self):
        super().__init__()
        self.image, self.depth, self.both = conv(3, 8), conv(1, 8), conv(8, 8)

    def forward(self, image, depth, *, scale=None):
        depth -= 0.5
        y = self.both(F.relu(self.image(image)) + F.relu(self.depth(depth)))
        return y if scale is None else y * scale[:, None, None, None]


class OneDict(TwoInputs):
    """Takes a dict by position."""

    def forward(self, batch):
        return {"both": super().forward(batch["image"], batch["depth"])}


class Pairs(nn.Module):
    """The same layers read both inputs, one after the other or as one batch."""

    def __init__(self, together: bool):
        super().__init__()
        self.first, self.second, self.norm, self.together = conv(3, 10), conv(10, 10), nn.BatchNorm2d(10), together

    def forward(self, one, other):
        if self.together:
            one, other = self.read(torch.cat([one, other])).chunk(2)
        else:
            one, other = self.read(one), self.read(other)
        return F.cosine_similarity(one, other), one - other

    def read(self, x):
        return F.relu(self.norm(self.second(F.relu(self.first(x))))).mean((2, 3))


class LookedInto(nn.Module):
    """Layers that nothing else could stand in for, each for another reason, and calls by keyword."""

    def __init__(self):
        super().__init__()
        self.first, self.hooked, self.last = conv(3, 8, stride=2), conv(8, 8), conv(8, 8)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1)
        self.functional = nn.Parameter(torch.randn(8, 8, 3, 3) / 9)
        self.computed = nn.utils.parametrizations.weight_norm(conv(8, 8))
        self.hooked.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x):
        y = F.relu(self.hooked(F.relu(self.first(x.to(self.first.weight.dtype)))))
        y = F.relu(self.computed(F.conv2d(y, self.functional, padding=1)))
        return self.last(input=F.relu(self.up(y, output_size=x.shape[2:])))


class WeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        old = nn.utils.weight_norm  # by a hook; the newer one is a parametrization
        self.layers = nn.Sequential(old(nn.Conv1d(2, 12, 7)), nn.ReLU(), old(nn.Conv1d(12, 12, 7)), nn.ReLU())
        self.last = nn.Conv1d(12, 3, 7)

    def forward(self, x):
        return self.last(self.layers(x))


def dense_net():
    return torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5)


def reg_net():
    params = regnet.BlockParams.from_init_params(depth=3, w_0=8, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return regnet.RegNet(params, num_classes=5, stem_width=8)


def vgg():
    layers = nn.Sequential(conv(3, 8), nn.ReLU(True), nn.MaxPool2d(2), conv(8, 12), nn.ReLU(True), conv(12, 12))
    return nn.Sequential(layers, nn.Flatten(), nn.Linear(12 * 36, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5))


def images() -> Tensor:
    return smooth(24)


def image_and_depth() -> tuple[Tensor, Tensor]:
    return smooth(24), smooth_of((24, 1, 12, 12))


def named() -> dict[str, Tensor]:
    image, depth = image_and_depth()
    return {"scale": torch.rand(24), "depth": depth, "image": image}


KINDS = {
    "vgg": (vgg, images),
    "densenet": (dense_net, lambda: smooth(16, 24)),
    "regnet": (reg_net, lambda: smooth(16, 24)),
    "squeeze and excite": (SqueezeExcite, images),
    "channel shuffle": (Shuffled, images),
    "sound, recurrent": (Recurrent, lambda: smooth_of((24, 1, 60))),
    "sound, causal": (Causal, lambda: smooth_of((24, 2, 40))),
    "video": (Video, lambda: smooth_of((12, 3, 4, 10, 10))),
    "frames in the batch": (Frames, lambda: smooth_of((12, 3, 4, 10, 10))),
    "one by one": (OneByOne, images),
    "scales": (Scales, images),
    "detector": (Detector, images),
    "norms of groups": (GroupNorms, images),
    "two inputs, written into": (TwoInputs, image_and_depth),
    "inputs by name": (TwoInputs, named),
    "a dict by position": (OneDict, lambda: (named(),)),
    "a pair, one after the other": (lambda: Pairs(False), lambda: (smooth(24), smooth(24))),
    "a pair, as one batch": (lambda: Pairs(True), lambda: (smooth(24), smooth(24))),
    "weight norm": (WeightNorm, lambda: smooth_of((24, 2, 40))),
}
