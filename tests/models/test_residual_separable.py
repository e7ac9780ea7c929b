"""The compact network: its size, its shapes, and that it starts as the identity and survives saving."""

import pytest
import torch

from separable import cost, store
from separable.errors import InputError
from separable.models.residual_separable import ResidualSeparable, WideningBlock


def test_the_network_for_fashion_mnist_stays_under_150_000_parameters():
    stem, narrow, wide = 36 * 48, 9 * 48 + 2 * 48 * 96, 9 * 96 + 2 * 96 * 192  # weights, each used once a pixel
    joins, norms, biases = 48 * 96, 2 * (3 * 48 + 4 * 96), 2 * 96 + 3 * 192 + 10
    counted = cost.count(ResidualSeparable(10, 1), torch.zeros(1, 1, 28, 28))
    assert counted.params == stem + 2 * narrow + joins + 3 * wide + 960 + norms + biases == 141_610
    assert counted.macs == 196 * (stem + 2 * narrow) + 49 * (joins + 3 * wide) + 960 == 9_893_472


def test_the_network_for_cifar_stays_under_300_000_parameters_and_15_million_macs():
    network = ResidualSeparable(10, 3, widths=(32, 96, 144), depths=(2, 4, 1))
    counted = cost.count(network, torch.zeros(1, 3, 32, 32))
    assert counted.params <= 300_000
    assert counted.macs <= 15_000_000


def test_a_block_begins_as_the_identity_inside_the_network():
    network = ResidualSeparable(10, 3)
    block = next(m for m in network.modules() if isinstance(m, WideningBlock))
    x = torch.randn(2, 48, 8, 8)
    assert torch.equal(block(x), x)
    block.norm.weight.data.fill_(1.0)
    assert not torch.allclose(block(x), x)


@pytest.mark.parametrize("size", [(28, 28), (29, 33), (8, 8)])
def test_takes_any_size_and_gives_a_score_for_each_class(size):
    assert ResidualSeparable(7, 1, widths=(8, 16, 24), depths=(1, 0, 1))(torch.zeros(2, 1, *size)).shape == (2, 7)


def test_gradients_stay_channels_last():
    """The pooling that ends the network decides the layout of every gradient above it, and with it the time."""
    network = ResidualSeparable(10, 1).to(memory_format=torch.channels_last)
    seen = []
    network.stages.register_full_backward_hook(lambda module, inward, outward: seen.append(outward[0]))
    network(torch.randn(4, 1, 28, 28).to(memory_format=torch.channels_last)).sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_comes_back_from_a_saved_folder(tmp_path):
    network = ResidualSeparable(10, 1).eval()
    for parameter in network.parameters():
        parameter.data.add_(0.01)
    store.save(network, tmp_path / "network", example=torch.randn(1, 1, 28, 28))
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(store.load(tmp_path / "network")(x), network(x))


def test_widths_and_depths_must_go_together():
    with pytest.raises(
        InputError, match=r"depths = \(1, 2, 3\): must say how many blocks each of the widths \(8, 16\)"
    ):
        ResidualSeparable(10, 3, widths=(8, 16), depths=(1, 2, 3))
    with pytest.raises(InputError, match="must be odd"):
        WideningBlock(8, kernel_size=4)
