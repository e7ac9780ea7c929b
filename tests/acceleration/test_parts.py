"""Parts of values: a step that reads only a part of what another makes leaves that other as it is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from separable import accelerate


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.point = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.deep, self.other = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.linear, self.norm, self.batch_norm = nn.Linear(8, 8), nn.LayerNorm(8), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


IMAGES = {
    "activation of the first image": lambda n, x: F.relu(n.conv(x)[:1]),
    "activation of the first rows": lambda n, x: F.relu(n.conv(x)[:, :, :3]),
    "norm of the first image": lambda n, x: n.batch_norm(n.point(x)[:1]),
    "sum of first images": lambda n, x: n.conv(x)[:1] + n.point(x)[:1],
    "sum of one with itself": lambda n, x: n.conv(x)[:1] + n.conv(x)[:1],
    "chain from the first image": lambda n, x: n.point(n.deep(x)[:1]),
    "chain from the first rows": lambda n, x: n.point(n.deep(x)[:, :, :4]),
    "pointwise, first rows, depthwise": lambda n, x: n.deep(n.point(x)[:, :, :4]),
    "two pointwise": lambda n, x: n.other(n.point(x)[:1]),
    "mean of the first rows": lambda n, x: n.deep(x)[:, :, :5].mean((2, 3)),
    "mean of the first image": lambda n, x: n.deep(x)[:1].mean((2, 3)),
    "late norm of the first image": lambda n, x: n.point(n.batch_norm(F.relu(n.conv(x))[:1])),
    "scaled first image": lambda n, x: n.point(n.conv(x)[:1] * torch.sigmoid(n.deep(x)[:1].mean((2, 3), keepdim=True))),
    "transposed, first rows": lambda n, x: F.relu(n.up(x)[:, :, :3]),
    "resized first image": lambda n, x: n.point(F.interpolate(n.conv(x)[:1], scale_factor=2.0)),
}
ROWS = {
    "activation of the first token": lambda n, x: F.gelu(n.linear(x)[:, 0]),
    "linear of the first image": lambda n, x: n.linear(n.linear(x)[:1]),
    "norm of the first token": lambda n, x: n.linear(n.norm(n.linear(x)[:, 0])),
    "sum of first tokens": lambda n, x: n.linear(x)[:, 0] + n.norm(x)[:, 0],
}
NUMBERS = {
    "mean, times a number": lambda n, x: n.conv(x).mean() * 2,
    "sum of means": lambda n, x: sum([n.conv(x).mean(), n.point(x).mean()]),
    "tanh of a sum": lambda n, x: torch.tanh(n.conv(x).sum() + 1),
}


def agrees(body, x):
    torch.manual_seed(0)
    network = Net(body).eval()
    with torch.no_grad():
        expected = network.double()(x.double())
        network.float()
        for tune in (True, False):
            fast = accelerate(network, x, tune=tune)
            for _ in range(2):
                torch.testing.assert_close(fast(x), expected.float(), rtol=1e-4, atol=1e-5)
            assert "could not be planned" not in str(fast.report)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", [*IMAGES, *NUMBERS])
def test_a_part_of_an_image(name, batch):
    agrees((IMAGES | NUMBERS)[name], torch.randn(batch, 8, 7, 6))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ROWS)
def test_a_part_of_rows(name, batch):
    agrees(ROWS[name], torch.randn(batch, 5, 8))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("name", ["conv", "point", "deep", "up"])
def test_images_of_one_row_or_column(name, size):
    agrees(lambda network, x: getattr(network, name)(F.relu(network.point(x))), torch.randn(2, 8, *size))
    agrees(lambda network, x: getattr(network, name)(x), torch.randn(2, 8, *size))


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Linear(16, 8), nn.Flatten(1), nn.Linear(80, 4)), (2, 10, 16)),
        ((nn.Linear(35, 1), nn.Flatten(1), nn.Linear(150, 16)), (2, 150, 35)),
        ((nn.Linear(80, 8), nn.Unflatten(1, (4, 2)), nn.Linear(2, 4)), (3, 80)),
        ((nn.LayerNorm(16), nn.Flatten(1), nn.Linear(160, 4)), (2, 10, 16)),
        ((nn.LayerNorm(16, elementwise_affine=False), nn.Flatten(1), nn.Linear(160, 4)), (2, 10, 16)),
        ((nn.Conv2d(32, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 64)), (2, 32, 8, 8)),
        ((nn.Conv2d(8, 4, 1), nn.Flatten(2), nn.Linear(36, 4), nn.ReLU()), (2, 8, 6, 6)),
    ],
)
def test_rows_of_another_length(layers, shape):
    body = nn.Sequential(*layers)
    agrees(lambda _, x: _same_type(body, x)(x), torch.randn(shape))


def _same_type(body, x):
    return body.to(x.dtype).eval()


def test_a_gate_that_is_reshaped():
    gate, last = nn.Conv2d(1, 1, 1), nn.Linear(64, 4)

    def body(_, x):
        scaled = x * torch.sigmoid(_same_type(gate, x)(x.mean((2, 3), keepdim=True)))
        return _same_type(last, x)(scaled.reshape(len(x), -1))

    agrees(body, torch.randn(2, 1, 8, 8))


def test_more_dimensions_than_the_kernels_know():
    agrees(
        lambda n, x: n.conv(x).view(2, 2, 2, 2, 4, 2, 4).permute(0, 6, 2, 4, 1, 3, 5).flatten(1),
        torch.randn(2, 8, 4, 8),
    )


@torch.no_grad()
def test_an_input_that_is_stored_negated():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    fast, z = accelerate(network), torch.randn(2, 3, 8, 8, dtype=torch.complex64)
    for x in (z.imag, z.conj().imag, z.imag):
        torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_late_norm_of_a_large_mean_keeps_its_precision():
    first = nn.Conv2d(64, 64, 1, groups=64, bias=False)
    network = nn.Sequential(first, nn.ReLU(), nn.BatchNorm2d(64), nn.Conv2d(64, 8, 1)).eval()
    nn.init.ones_(first.weight)
    network[2].running_mean.fill_(900.0)
    x = 900 + torch.randn(1, 64, 12, 12)
    exact = network.double()(x.double())
    expected, actual = network.float()(x), accelerate(network, x)(x)
    assert (actual - exact).abs().max() <= 3 * (expected - exact).abs().max()
