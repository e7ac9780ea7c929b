"""Channels between two layers go, the second layer makes up for them, and nothing else in the network notices."""

import itertools

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import conv, settled, smooth
from torch import nn

from separable import cost
from separable.conversion import Study, calibrate, survey, thin
from separable.conversion.moments import Moments
from separable.conversion.plan import cheapest, choose
from separable.conversion.table import Option, every_option
from separable.conversion.weigh import tabulate

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(channels: int, outputs: int = 3, taps: int = 4):
    """A weight [1, O, C, K] and moments of inputs whose channels and taps vary together."""
    mix, taps_mix = torch.randn(channels, channels).double(), torch.randn(taps, taps).double()
    moments = Moments((mix @ mix.T).unsqueeze(0), taps_mix @ taps_mix.T)
    return torch.randn(1, outputs, channels, taps).double(), moments, torch.rand(1, outputs).double() + 0.5


def missed(weight, moments, importance, kept) -> float:
    """What the best weights of the kept channels leave of the output's variance, by the moments of whole patches."""
    outputs, taps = weight.shape[1], weight.shape[3]
    patches = torch.kron(moments.channels[0], moments.taps)
    rows = weight[0].reshape(outputs, -1)
    some = torch.tensor([c * taps + k for c in kept for k in range(taps)], dtype=torch.long)
    cross = rows @ patches
    given = cross[:, some] @ torch.linalg.inv(patches[some][:, some]) @ cross[:, some].T if len(some) else 0.0
    error = (rows @ patches @ rows.T - given).diagonal()
    return float((importance[0] * error).sum() / (importance[0] * (rows @ patches @ rows.T).diagonal()).sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(0, 10_000))
def test_each_channel_that_goes_is_the_one_missed_least(channels, seed):
    torch.manual_seed(seed)
    weight, moments, importance = drawn(channels)
    order, losses = thin.elimination(weight, moments, importance)
    assert sorted(order) == list(range(channels))
    left = set(range(channels))
    for gone, loss in zip(order, losses, strict=True):
        least = min(missed(weight, moments, importance, sorted(left - {c})) for c in left)
        assert missed(weight, moments, importance, sorted(left - {gone})) == pytest.approx(least, rel=1e-3, abs=1e-4)
        left.remove(gone)
        assert loss == pytest.approx(missed(weight, moments, importance, sorted(left)), rel=1e-3, abs=1e-4)


def test_what_stays_makes_up_for_what_goes_by_least_squares():
    weight, moments, importance = drawn(5)
    kept = torch.tensor([0, 2, 3])
    less = thin.made_up(weight, moments, kept)
    whole = torch.zeros_like(weight).index_copy(2, kept, less) - weight
    error = torch.einsum("gock,cd,kl,godl->o", whole, moments.channels[0], moments.taps, whole)
    rows = torch.einsum("gock,cd,kl,godl->o", weight, moments.channels[0], moments.taps, weight)
    share = float((importance[0] * error).sum() / (importance[0] * rows).sum())
    assert share == pytest.approx(missed(weight, moments, importance, [0, 2, 3]), rel=1e-4)


def test_a_channel_that_another_tells_goes_first_and_costs_nothing():
    weight, moments, importance = drawn(4)
    copies = torch.tensor([0, 1, 2, 3, 1])
    moments = Moments(moments.channels[:, copies][:, :, copies], moments.taps)
    order, losses = thin.elimination(weight[:, :, copies], moments, importance)
    assert order[0] in (1, 4)
    assert losses[0] < 1e-4 < losses[1]


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("bias", [True, False])
def test_a_narrow_convolution_gives_the_channels_that_it_keeps(kind, bias):
    whole, kept = kind(6, 8, 3, bias=bias), torch.tensor([1, 2, 5])
    x = torch.randn(2, 6, *[9] * (whole.weight.dim() - 2))
    torch.testing.assert_close(thin.narrow(whole, outputs=kept)(x), whole(x)[:, kept])
    silent = torch.zeros_like(x).index_copy(1, kept, x[:, kept])
    torch.testing.assert_close(thin.narrow(whole, inputs=kept)(x[:, kept]), whole(silent))
    assert whole.weight.shape[:2] in ((8, 6), (6, 8))


class Between(nn.Module):
    """Two convolutions and what is done between them, and to the network's end with what stands between."""

    def __init__(self, between, after=None):
        super().__init__()
        self.first, self.second, self.between, self.after = conv(3, 8), conv(8, 8), between, after

    def forward(self, x):
        y = self.between(self.first(x))
        z = self.second(y)
        return z if self.after is None else self.after(y, z)


WITHOUT_NOTICE = {
    "a ReLU": nn.ReLU(),
    "a norm and an activation": nn.Sequential(nn.BatchNorm2d(8), nn.SiLU()),
    "pooling": nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
    "dropout and upsampling": nn.Sequential(nn.Dropout(), nn.Upsample(scale_factor=2)),
}
NOTICED = {
    "a sigmoid": (nn.Sigmoid(), None),
    "group norm": (nn.GroupNorm(2, 8), None),
    "softmax over channels": (nn.Softmax(1), None),
    "a shortcut": (nn.ReLU(), lambda y, z: y + z),
    "concatenation": (nn.ReLU(), lambda y, z: torch.cat([y, z], 1)),
    "its mean": (nn.ReLU(), lambda y, z: z * y.mean((1, 2, 3), keepdim=True)),
    "a fixed reshape": (lambda y: y.view(len(y), 8, *y.shape[2:]), None),
}


@pytest.mark.parametrize("name", WITHOUT_NOTICE)
def test_channels_that_one_layer_alone_reads_can_go(name):
    x = smooth(4)
    network = settled(Between(WITHOUT_NOTICE[name]), x)
    assert survey(network, x).pairs == {"second": "first"}


@pytest.mark.parametrize("name", NOTICED)
def test_channels_that_anything_else_reads_or_mixes_stay(name):
    between, after = NOTICED[name]
    network = Between(between, after).eval()
    x = smooth(4)
    assert survey(network, x).pairs == {}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_pair_of_every_kind_of_network_can_be_made_thin(name):
    x = smooth(8)
    network = settled(networks.NETWORKS[name](), x)
    found = survey(network, x)
    table = every_option(found, fit=False)
    for second, first in found.pairs.items():
        tied = [option for option in table[second] if option.tied == (first, second)]
        chosen = {first: (thin.FIRST, tied[0].rank), second: (thin.SECOND, tied[0].rank)}
        made, errors = calibrate(found, chosen)
        assert made(x.clone()) is not None
        assert {first, second} <= set(errors)
        counted = {layer.name: layer.macs for layer in cost.count(made, x[:1]).layers}
        for member in (first, second):
            option = next(o for o in table[member] if o.tied == (first, second) and o.rank == tied[0].rank)
            assert sum(macs for layer, macs in counted.items() if layer.startswith(member)) == option.macs


def test_channels_that_others_tell_go_without_loss():
    x = smooth(32, 10)
    network = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.ReLU())
    with torch.no_grad():
        network[0].weight[4:] = network[0].weight[:4] * 2.0
        network[0].bias[4:] = network[0].bias[:4] * 2.0
    network = settled(network, x)
    with torch.no_grad():
        for tensor in (network[1].weight, network[1].bias):
            tensor[4:] = tensor[:4] * 3.0
    found = survey(network, x)
    made, _ = calibrate(found, {"0": (thin.FIRST, 4), "3": (thin.SECOND, 4)})
    with torch.no_grad():
        torch.testing.assert_close(made(x), network(x), rtol=1e-2, atol=1e-3 * float(network(x).abs().max()))
    assert made[0].out_channels == made[1].num_features == made[3].in_channels == 4


def tables():
    """Three layers, the first two of them tied at two ranks."""
    number = st.floats(0.0, 10.0)

    @st.composite
    def table(draw):
        made = {}
        for name in "abc":
            made[name] = [Option(None, 0, 100, 100)]
            for rank in (1, 2):
                made[name].append(Option("polyadic", rank, draw(st.integers(1, 99)), 10, change=draw(number)))
        for name, form in (("a", thin.FIRST), ("b", thin.SECOND)):
            for rank in (4, 8):
                macs, change = draw(st.integers(1, 99)), draw(number) if name == "b" else 0.0
                made[name].append(Option(form, rank, macs, 10, change=change, tied=("a", "b")))
        return made

    return table()


def brute(table, limit):
    """The least change of all plans that keep ties."""
    best = None
    for plan in itertools.product(*table.values()):
        ties = [(o.tied, o.rank) for o in plan if o.tied]
        if sum(o.macs for o in plan) <= limit and len(ties) in (0, 2) and len(set(ties)) <= 1:
            change = sum(o.change for o in plan)
            best = change if best is None else min(best, change)
    return best


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(3, 300))
def test_a_plan_takes_both_sides_of_a_tie_or_neither(table, limit):
    found, best = choose(table, {"macs": limit}), brute(table, limit)
    assert (found is None) == (best is None)
    if found is not None:
        assert sum(o.macs for o in found.values()) <= limit
        assert {bool(found["a"].tied), bool(found["b"].tied)} in ({True}, {False})
        assert found["a"].tied is None or found["a"].rank == found["b"].rank
        assert sum(o.change for o in found.values()) <= best * 1.01 + 1e-3


@settings(max_examples=20, deadline=None)
@given(tables())
def test_the_cheapest_plan_keeps_ties_too(table):
    found = cheapest(table, "macs")
    total = sum(o.macs for o in found.values())
    assert brute(table, total) is not None
    assert brute(table, total - 1) is None


def test_a_study_uses_thin_pairs_where_they_are_best(monkeypatch):
    """Of a network whose inner channels are mostly copies nothing else loses as little."""
    x = smooth(64, 10)
    network = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 6))
    with torch.no_grad():
        network[0].weight.copy_(network[0].weight[:4].repeat(4, 1, 1, 1))
        network[0].bias.copy_(network[0].bias[:4].repeat(4))
    monkeypatch.setattr("separable.conversion.timing.time_options", lambda *_: None)
    monkeypatch.setattr("separable.conversion.study._COMPARED", ("torch",))
    done = Study(network.eval(), x, target="torch").convert({"macs": 0.3})
    assert [choice.form for choice in done.layers] == [thin.FIRST, thin.SECOND]
    assert done.macs_after <= 0.3 * done.macs_before
    assert tabulate(survey(network, x))["2"][-1].tied == ("0", "2")
