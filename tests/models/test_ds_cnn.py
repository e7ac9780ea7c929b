"""DS-CNN costs what the paper says, and folds into the same function."""

import pytest
import torch
from torch import nn

from separable import cost
from separable.errors import InputError
from separable.layers import SeparableConv2d
from separable.models.ds_cnn import DSCNN


def trained(network):
    """As after training: statistics and affine parts that differ from channel to channel."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
    return network.eval()


@pytest.mark.parametrize(
    ("size", "params", "macs", "kilobytes"),
    [
        ("small", 22_604, 2_656_768, 38.6),
        ("medium", 135_032, 9_816_384, 189.2),
        ("large", 410_700, 28_327_812, 497.6),
    ],
)
def test_it_costs_what_the_paper_says(size, params, macs, kilobytes):
    network = DSCNN(size).eval().folded()
    counted = cost.count(network, torch.zeros(1, 49, 10))
    assert (counted.params, counted.macs) == (params, macs)
    # the paper's memory: 8-bit weights, and what goes into and comes out of the first separable layer
    ends = []
    network.blocks[0].register_forward_hook(lambda _, given, result: ends.extend([given[0].numel(), result.numel()]))
    network(torch.zeros(1, 49, 10))
    assert round((params + sum(ends)) / 1000, 1) == kilobytes


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_folded_it_is_the_same_function(size):
    network = trained(DSCNN(size, num_classes=7)).double()
    features = torch.randn(3, 49, 10, dtype=torch.float64)
    folded = network.folded()
    torch.testing.assert_close(folded(features), network(features))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules()), "the network itself was changed"


def test_its_blocks_are_our_layers_and_its_maps_shrink_as_in_the_paper():
    for size, first, last in (("small", (25, 5), (25, 5)), ("medium", (25, 10), (13, 5)), ("large", (25, 10), (13, 5))):
        network, seen = DSCNN(size).eval(), []
        assert all(isinstance(block, SeparableConv2d) for block in network.blocks)
        network.conv_stem.register_forward_hook(lambda _, __, result, seen=seen: seen.append(tuple(result.shape[2:])))
        network.blocks.register_forward_hook(lambda _, __, result, seen=seen: seen.append(tuple(result.shape[2:])))
        network(torch.zeros(1, 49, 10))
        assert seen == [first, last]


def test_other_lengths_and_features_go_in():
    network = DSCNN("small", num_classes=3).eval()
    for shape in ((1, 98, 40), (2, 1, 10), (2, 300, 13)):
        assert network(torch.zeros(shape)).shape == (shape[0], 3)


def test_sizes_and_classes_that_are_none_are_refused():
    with pytest.raises(InputError, match="size = tiny: must be one of small, medium, large"):
        DSCNN("tiny")
    with pytest.raises(InputError, match="num_classes = 0"):
        DSCNN(num_classes=0)
