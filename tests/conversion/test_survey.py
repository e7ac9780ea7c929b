"""The survey sees which layers run, in which order, what reads them, and why a layer stays as it is."""

import networks
import pytest
import torch
import torch.nn.functional as F
from networks import conv, settled, smooth
from torch import nn

from separable.conversion import survey
from separable.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def sites(network, x=None):
    x = smooth(6) if x is None else x
    return {site.name: site for site in survey(settled(network, x), x).sites}


@pytest.mark.parametrize("inplace", [False, True])
def test_order_norms_shortcuts_and_activations_are_seen(inplace):
    seen = sites(networks.Residual(inplace))
    assert list(seen) == ["conv1", "conv2", "conv3", "narrow", "deep", "mix"]
    assert [site.norm for site in seen.values()] == ["bn1", "bn2", "bn3", None, None, None]
    assert [site.added for site in seen.values()] == [None, None, "bn3", None, None, None]
    assert [site.rectified for site in seen.values()] == [True, True, True, False, False, False]
    assert seen["narrow"].kept is None, "groups are no hindrance"
    assert "depthwise already" in seen["deep"].kept
    assert "pointwise" in seen["mix"].kept


def test_an_addition_after_an_activation_in_place_is_not_taken_for_the_layers_own():
    class Late(networks.Residual):
        def forward(self, x):
            x = self.bn1(self.conv1(x))
            y = F.relu_(self.bn2(self.conv2(x)))
            return self.linear(self.mix(x + y).mean((2, 3)))

    assert sites(Late())["conv2"].added is None


def test_a_norm_that_is_not_the_only_reader_is_not_fitted_with_the_layer():
    class Twice(networks.Residual):
        def forward(self, x):
            x = self.conv1(x)
            return self.linear(self.mix(self.bn1(x) + x).mean((2, 3)))

    assert sites(Twice())["conv1"].norm is None


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_an_output_of_the_network_has_the_caller_as_a_reader(kind):
    assert sites(networks.Heads(kind))["body"].norm is None
    assert sites(networks.SumRead())["conv3"].added is None


def test_of_two_layers_added_to_each_other_the_later_takes_the_sum():
    before, after = sites(networks.Shortcut()), sites(networks.Shortcut(before=False))
    assert (before["short"].added, before["branch.3"].added) == (None, "branch.3")
    assert (after["short"].added, after["branch.3"].added) == ("short", None)


def test_layers_that_share_weights_stay():
    network = nn.Sequential(conv(3, 12), conv(12, 12), conv(12, 12))
    network[2].weight = network[1].weight
    seen = sites(network)
    assert "shares its weights" in seen["1"].kept
    assert "shares its weights" in seen["2"].kept
    assert seen["0"].kept is None


def test_what_cannot_be_converted_is_listed_with_its_reason():
    class Own(nn.Conv2d):
        pass

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.own = conv(3, 4), Own(4, 4, 3)
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x):
            return F.conv2d(self.own(self.first(x)), self.weight)

    seen = sites(Calls())
    assert "it is a Own" in seen["own"].kept
    assert "called as a function" in seen["function 0"].kept


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_work_and_sizes_are_those_counted_of_the_network(name):
    x = smooth(4)
    found = survey(settled(networks.NETWORKS[name](), x), x)
    for site in found.convertible:
        layer = found.conv(site)
        taps = torch.Size(layer.kernel_size).numel() * layer.in_channels // layer.groups * layer.out_channels
        transposed = isinstance(layer, nn.ConvTranspose2d)
        assert site.macs == taps * sum(torch.Size(given if transposed else made).numel() for given, made in site.sizes)
        assert site.params == sum(p.numel() for p in layer.parameters())
        assert site.known.channels.isfinite().all()
    assert sum(site.macs for site in found.sites) <= found.macs


def test_a_layer_under_two_names_is_seen_once_with_both_of_its_calls():
    seen = sites(networks.Twice())
    assert list(seen) == ["first", "again", "last"]
    assert [len(site.sizes) for site in seen.values()] == [1, 2, 1]


def test_a_survey_keeps_at_most_the_examples_asked_for():
    found = survey(networks.Writing(), (smooth(5) for _ in range(100)), samples=12)
    assert found.examples == 12


def test_a_network_that_writes_into_its_input_leaves_the_data_alone():
    x = smooth(4)
    kept = x.clone()
    survey(networks.Writing(), x)
    assert torch.equal(x, kept)


def test_an_example_without_a_batch_is_refused_by_its_reason():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(3, 4)

        def forward(self, x):
            return torch.stack([self.conv(image) for image in x])

    with pytest.raises(InputError, match="single example without a batch"):
        survey(Single(), smooth(4))
