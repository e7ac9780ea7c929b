"""Networks without attention become one program: what resizes, pads and spreads gives torch's numbers."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norms import lived_in
from separable import _native, accelerate

needs_kernels = pytest.mark.skipif(bool(_native.missing), reason=f"no native kernels: {_native.missing}")
WAYS = [pytest.param(isa, id=isa) for isa in _native.isas()] + [pytest.param(None, id="torch")]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Each instruction set, and the same steps by torch."""
    if request.param is None:
        monkeypatch.setattr(_native, "path", None)
        yield None
    else:
        with _native.force(request.param):
            yield request.param


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, channels: int, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.before, self.after = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.function = function

    def forward(self, x):
        return self.after(self.function(self.before(x)))


def judge(network: nn.Module, x: Tensor, way: str | None, tolerance: float = 2e-6) -> None:
    network = network.eval()
    expected = network(x)
    fast = accelerate(network, x, tune=False)
    made = fast(x)
    assert made.shape == expected.shape
    assert made.stride() == expected.stride()
    assert ((made - expected).abs().max() / expected.abs().max()).item() < tolerance
    if way is not None:
        assert fast.report.programs == 1, fast.report
        assert not fast.report.left_alone, fast.report


def inputs(channels: int):
    """Odd sizes, one image and several, both orders in memory."""
    yield torch.randn(1, channels, 7, 9)
    yield torch.randn(3, channels, 5, 12).to(memory_format=torch.channels_last)


SIZES = [
    {"scale_factor": 2},
    {"scale_factor": 1.7},
    {"scale_factor": 0.6},
    {"size": (11, 4)},
    {"size": (5, 12)},
    {"size": (1, 1)},
    {"scale_factor": (2.5, 0.5), "recompute_scale_factor": True},
]


@pytest.mark.parametrize("channels", [1, 3, 16, 17])
@pytest.mark.parametrize(
    ("mode", "align_corners"), [("nearest", None), ("nearest-exact", None), ("bilinear", False), ("bilinear", True)]
)
@torch.no_grad()
def test_images_are_resized_as_by_torch(mode, align_corners, channels, way):
    for x, size in zip(itertools.cycle(inputs(channels)), SIZES, strict=False):
        options = {"mode": mode, "align_corners": align_corners, **size}
        judge(Between(channels, lambda x, options=options: F.interpolate(x, **options)), x, way)


@torch.no_grad()
def test_a_scale_factor_is_taken_as_it_is_given(way):
    """13 * 1.5 is 19 whole pixels: their places differ by whether 1.5 or 19 / 13 lies between them."""
    x = torch.arange(13.0).expand(1, 2, 3, 13).contiguous()
    for mode in ("nearest", "bilinear"):
        made = []
        for recompute in (False, True):
            options = {"scale_factor": 1.5, "mode": mode, "recompute_scale_factor": recompute}
            judge(Between(2, lambda x, options=options: F.interpolate(x, **options)), x, way)
            made.append(F.interpolate(x, **options))
        assert mode == "nearest" or not torch.equal(*made)


@torch.no_grad()
def test_what_is_resized_and_returned_lies_as_torch_has_it(way):
    for channels in (1, 5, 21):
        for x in inputs(3):
            network = nn.Sequential(nn.Conv2d(3, channels, 1), nn.Upsample(scale_factor=3, mode="bilinear"))
            judge(network, x, way)


PADS = [
    (0, 0, 0, 0, 2, 3),
    (1, 2, -1, 3, 0, 1),
    (-1, -2, -1, -1),
    (1, 0, 2, 1, -1, 2),
    (3, 0),
]


@pytest.mark.parametrize("channels", [3, 16, 17])
@torch.no_grad()
def test_constant_borders_and_cuts(channels, way):
    for x in inputs(channels):
        for by in PADS:
            back = [-n for n in by]
            judge(Between(channels, lambda x, by=by, back=back: F.pad(F.pad(x, by, value=1.5).relu(), back)), x, way)


@pytest.mark.parametrize("channels", [3, 16])
@torch.no_grad()
def test_borders_of_numbers_other_than_zero_do_not_go_into_the_convolution(channels, way):
    for x in inputs(channels):
        judge(
            nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ConstantPad2d(1, 0.5), nn.Conv2d(channels, 4, 3)), x, way
        )
        network = nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(channels, 4, 3))
        judge(network, x, way)
        if way is not None:
            assert "pad" not in {row.kernel for row in accelerate(network, x).report.rows}


SPREADS = [
    # kernel, stride, padding, output padding, dilation
    (2, 2, 0, 0, 1),
    (4, 2, 1, 0, 1),
    (3, 2, 1, 1, 1),
    (3, 3, 0, 2, 1),
    (5, 3, 2, 0, 2),
    (1, 2, 0, 1, 1),
    (3, 1, 1, 0, 1),
    (2, (2, 1), (0, 1), 0, 1),
    (4, 4, 4, 0, 1),
    (3, 2, 0, 0, 3),
    ((1, 4), (1, 2), (0, 1), 0, 1),
]


@pytest.mark.parametrize("channels", [1, 3, 16, 17])
@torch.no_grad()
def test_transposed_convolutions(channels, way):
    for x, (kernel, stride, padding, added, dilation) in zip(itertools.cycle(inputs(channels)), SPREADS, strict=False):
        options = (channels, channels, kernel, stride, padding, added)
        judge(Between(channels, nn.ConvTranspose2d(*options, dilation=dilation)), x, way)
        each = nn.ConvTranspose2d(*options, channels, False, dilation)  # groups of one channel
        judge(Between(channels, lived_in(nn.Sequential(each, nn.BatchNorm2d(channels), nn.ReLU()))), x, way)
    spread = nn.ConvTranspose2d(channels, 5, 4, 2, 1, bias=False)
    judge(nn.Sequential(spread, nn.Tanh()), x, way)


@torch.no_grad()
def test_a_transposed_convolution_takes_in_what_stands_after_it(way):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.spread, self.norm = nn.ConvTranspose2d(8, 12, 4, 2, 1), lived_in(nn.BatchNorm2d(12))
            self.other = nn.ConvTranspose2d(8, 12, 2, 2)

        def forward(self, x):
            return (self.norm(self.spread(x)) + self.other(x)).relu()

    network, x = Block().eval(), torch.randn(2, 8, 5, 6)
    judge(network, x, way)
    if way is not None:
        kernels = {row.kernel for row in accelerate(network, x).report.rows}
        assert kernels <= {"transposed_conv", "relayout"}, kernels


OPERATORS = {
    "tanh": torch.tanh,
    "leaky relu": nn.LeakyReLU(0.2),
    "negative slope below zero": nn.LeakyReLU(-0.3),
    "clamp": lambda x: x.clamp(-0.5, 0.25),
    "clamp from above": lambda x: x.clamp(max=0.1),
    "clamp from below": lambda x: x.clamp_min(-0.2),
    "hardtanh": nn.Hardtanh(-0.3, 0.4),
    "difference": lambda x: (x - 2) - x * x,
    "quotient": lambda x: x / (1 + x * x),
    "difference, then an activation": lambda x: (x - x.sigmoid()).relu(),
    "quotient by one number a channel": lambda x: x / (1 + x.mean((2, 3), keepdim=True).sigmoid()),
    "from a number": lambda x: 2.5 - x * 3,
    "rsub": lambda x: torch.rsub(x, 1),
    "negative": lambda x: -x,
    "dropout in place": nn.Dropout(0.5, inplace=True),
}


@pytest.mark.parametrize("name", OPERATORS)
@torch.no_grad()
def test_operators_and_activations(name, way):
    for channels in (1, 3, 17):
        for x in inputs(channels):
            judge(Between(channels, OPERATORS[name]), x, way, 1e-5)


@pytest.mark.parametrize("factor", [2, 3])
@torch.no_grad()
def test_pixels_made_of_channels(factor, way):
    for channels in (1, 4):
        network = nn.Sequential(
            nn.Conv2d(3, channels * factor**2, 3), nn.PixelShuffle(factor), nn.Conv2d(channels, 2, 3)
        )
        for x in inputs(3):
            judge(network.eval(), x, way)
            judge(network[:2], x, way)


@torch.no_grad()
def test_an_image_is_normalised_by_buffers(way):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.rand(1, 3, 1, 1))
            self.register_buffer("deviation", torch.rand(1, 3, 1, 1) + 0.5)
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return self.conv((x - self.mean) / self.deviation) - self.mean.sum() * 2

    for x in inputs(3):
        judge(Normalised(), x, way)


class Beside(nn.Module):
    """A function of the input, and a convolution that makes a program worth its while."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.conv, self.function = nn.Conv2d(17, 4, 1), function

    def forward(self, x):
        return self.function(x), self.conv(torch.ones_like(x))


NUMBERS = {
    "bilinear": lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
    "bilinear to the corners": lambda x: F.interpolate(x, size=(9, 17), mode="bilinear", align_corners=True),
    "bilinear to the same size": lambda x: F.interpolate(x, size=(5, 9), mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, scale_factor=1.7),
    "pad": lambda x: F.pad(x, (1, 1, 0, 0, 2, 2), value=math.inf),
    "tanh": torch.tanh,
    "leaky relu": nn.LeakyReLU(0.2),
    "clamp": lambda x: x.clamp(-0.5, 0.25),
    "difference": lambda x: x - x * x,
    "quotient": lambda x: x / (x * 0),
    "from a number": lambda x: 1 - x,
}


@pytest.mark.parametrize("name", NUMBERS)
@torch.no_grad()
def test_infinities_and_what_is_no_number_come_out_as_from_torch(name, way):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 17, 5, 9).to(memory_format=memory_format)
        x[0, 0, 0, 0], x[0, 1, 2, 3], x[1, 2, 4, 8], x[1, 16, 0, 8], x[0, 3] = (
            math.nan,
            math.inf,
            -math.inf,
            math.inf,
            0,
        )
        network = Beside(NUMBERS[name]).eval()
        expected, _ = network(x)
        made, _ = accelerate(network, x)(x)
        assert torch.equal(made.isnan(), expected.isnan())
        torch.testing.assert_close(made, expected, equal_nan=True, rtol=2e-6, atol=2e-6)


@needs_kernels
@torch.no_grad()
def test_tanh_keeps_the_digits_of_small_numbers():
    x = torch.logspace(-20, 1.5, 17 * 45).view(1, 17, 5, 9) * torch.tensor([1.0, -1.0]).repeat(383)[:765].view(
        1, 17, 5, 9
    )
    made, _ = accelerate(Beside(torch.tanh).eval(), x)(x)
    assert ((made.double() / x.double().tanh()) - 1).abs().max() < 1e-6


def convolved(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class UNet(nn.Module):
    """Two steps down, one up by weighted neighbours, one by a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = convolved(3, 16), convolved(16, 24), convolved(24, 32)
        self.spread = nn.ConvTranspose2d(24, 16, 2, 2)
        self.up, self.last, self.classes = convolved(32 + 24, 24), convolved(16 + 16, 16), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        wide = self.first(x)
        middle = self.second(F.max_pool2d(wide, 2))
        deep = self.third(F.max_pool2d(middle, 2))
        deep = F.interpolate(deep, size=middle.shape[2:], mode="bilinear", align_corners=False)
        middle = self.up(torch.cat([middle, deep], 1))
        return self.classes(self.last(torch.cat([wide, self.spread(middle)], 1)))


class ResNet20(nn.Module):
    """That of CIFAR in small, whose shortcuts have no parameters."""

    class Block(nn.Module):
        def __init__(self, c_in: int, c_out: int, stride: int):
            super().__init__()
            self.first, self.one = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
            self.second, self.two = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
            self.added, self.stride = (c_out - c_in) // 2, stride

        def forward(self, x):
            y = self.two(self.second(self.one(self.first(x)).relu()))
            if self.added:
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
            return (y + x).relu()

    def __init__(self):
        super().__init__()
        blocks = [(16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.stem, self.blocks = convolved(3, 16), nn.Sequential(*(self.Block(*block) for block in blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


class NormsLast(nn.Module):
    """Norms that stand after the activation, before convolutions with a border and without."""

    def __init__(self):
        super().__init__()
        conv = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 5), nn.Conv2d(16, 20, 3, padding=1)]
        self.stages = nn.Sequential(*(nn.Sequential(c, nn.ReLU(), nn.BatchNorm2d(c.out_channels)) for c in conv))

    def forward(self, x):
        return self.stages(x)


@pytest.mark.parametrize("kind", [UNet, ResNet20, NormsLast])
@torch.no_grad()
def test_a_network_without_attention_is_one_program(kind, way):
    for x in (torch.randn(2, 3, 32, 32), torch.randn(1, 3, 20, 20).to(memory_format=torch.channels_last)):
        judge(lived_in(kind()), x, way, 1e-5)


@needs_kernels
@torch.no_grad()
def test_a_norm_after_an_activation_goes_into_the_next_convolution_without_a_border():
    network, x = lived_in(NormsLast()).eval(), torch.randn(1, 3, 20, 20)
    rows = accelerate(network, x, tune=False).report.rows
    assert [row.kernel for row in rows if row.operation == "aten::batch_norm"][:2] == ["pointwise_conv", "dense_conv"]


@needs_kernels
@torch.no_grad()
def test_any_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    network, x = lived_in(UNet()).eval(), torch.randn(2, 3, 36, 44)
    made = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(accelerate(network, x, tune=False)(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
