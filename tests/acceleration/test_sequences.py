"""Networks on sequences [N, C, L]: the operations of images, on one row."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from separable import _native, accelerate
from separable.layers import DepthwiseConv1d, SeparableConv1d

LAYERS = {
    "dense": nn.Conv1d(16, 24, 5, padding=2),
    "few channels": nn.Conv1d(1, 16, 9, stride=2, padding=4),
    "pointwise": nn.Conv1d(16, 8, 1),
    "strided pointwise": nn.Conv1d(16, 8, 1, stride=2),
    "groups": nn.Conv1d(16, 32, 3, groups=4, padding=1),
    "depthwise": nn.Conv1d(16, 16, 3, groups=16, padding=1),
    "maps": nn.Conv1d(16, 32, 3, groups=16, stride=2),
    "dilated": nn.Conv1d(16, 16, 3, dilation=4, padding=4),
    "long kernel": nn.Conv1d(16, 8, 64, stride=3),
    "same": nn.Conv1d(16, 16, 4, padding="same"),
    "transposed": nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1),
    "transposed, more": nn.ConvTranspose1d(16, 8, 5, stride=3, padding=1, output_padding=2, dilation=2),
    "transposed, stride 1": nn.ConvTranspose1d(16, 8, 3),
    "largest": nn.MaxPool1d(3, 2, 1),
    "means": nn.AvgPool1d(4, 2, 1),
    "mean": nn.AdaptiveAvgPool1d(1),
    "ours": SeparableConv1d(16, 24, 5, padding="causal", inner_activation="relu"),
    "ours, depthwise": DepthwiseConv1d(16, 32, 3, padding="same", stride=2),
    "pads": nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(16, 16, 5)),
    "pads by others": nn.Sequential(nn.ConstantPad1d((2, 3), 0.5), nn.Conv1d(16, 16, 3)),
    "crops": nn.Sequential(nn.Conv1d(16, 16, 3), nn.ConstantPad1d((-2, -1), 0.0)),
}


@pytest.mark.parametrize("isa", [*_native.isas(), None])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_operations_on_sequences(name, isa, monkeypatch):
    channels = 1 if name == "few channels" else 16
    norm = nn.LazyBatchNorm1d() if name != "mean" else nn.Identity()
    network = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.ReLU(), LAYERS[name], norm, nn.SiLU())
    network(torch.randn(4, channels, 80))
    network.eval()
    if isa is None:
        monkeypatch.setattr(_native, "path", None)
    for x in (torch.randn(2, channels, 70), torch.randn(3, 71, channels).transpose(1, 2), torch.randn(1, channels, 66)):
        expected = network.double()(x.double()).float()
        network.float()
        if isa is None:
            actual = accelerate(network)(x)
        else:
            with _native.force(isa):
                fast = accelerate(network, x)
                actual = fast(x)
                assert not fast.report.left_alone
        assert actual.stride() == network(x).stride()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


class Listener(nn.Module):
    """A small network on sound: strided stem, residual blocks, a gate, a mean."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, 16, 16, 4), nn.BatchNorm1d(16), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(16, 16, 3, padding=2**i, dilation=2**i), nn.BatchNorm1d(16)) for i in range(3)
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(torch.cat([x, -x], 1).mean(-1))


@torch.no_grad()
def test_a_network_on_sound_is_one_program():
    network, x = Listener().eval(), torch.randn(2, 1, 800)
    fast = accelerate(network, x)
    torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-5)
    if _native.path:
        assert fast.report.programs == 1
        assert not fast.report.left_alone
