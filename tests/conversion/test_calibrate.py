"""Every layer is fitted in one pass over the data, and to the same numbers as layer by layer from the start."""

import copy
import threading

import networks
import pytest
import torch
from networks import conv, settled, smooth
from torch import nn

from separable.conversion import calibrate, moments, survey, watch
from separable.conversion.calibrate import replace
from separable.conversion.fitting import Fitting, from_moments
from separable.conversion.forms import FORMS
from separable.errors import InputError
from separable.inputs import Inputs

pytestmark = pytest.mark.usefixtures("one_thread")
CHOSEN = ["pointwise, dense", "polyadic", "depthwise first", "dense, pointwise"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert not set(threading.enumerate()) - before, "a walk left its thread behind"


def choice(found):
    """A form for each layer, in turn."""
    return {site.name: (CHOSEN[i % 4], 3) for i, site in enumerate(found.convertible)}


@torch.no_grad()
def seen(model, site, batch):
    """What a layer reads, what it should give (with its norm, in the sum), and what it is added to: copies of each."""
    model = copy.deepcopy(model)
    found = {}

    def summed(addition):
        if addition.name == site.name:
            found.update(shortcut=addition.other.clone(), output=(addition.side + addition.other).clone())

    readers = watch.Readers(summed)
    model.get_submodule(site.name).register_forward_pre_hook(lambda m, args: found.update(x=args[0].clone()))
    if site.added:
        model.get_submodule(site.added).register_forward_hook(lambda m, a, output: readers.follow(site.name, output))
    else:
        end = model.get_submodule(site.norm or site.name)
        end.register_forward_hook(lambda m, a, output: found.update(output=output.clone()))
    with readers:
        batch.call(model)
    return found


@torch.no_grad()
def order(found):
    """The layers that run once, as their values become known: of a layer whose output is added, at the sum."""
    waiting = {site.name: site for site in found.convertible if len(site.sizes) == 1}
    model, known = copy.deepcopy(found.model), []
    readers = watch.Readers(lambda addition: known.append(addition.name))
    for name, site in waiting.items():
        if site.added:
            end = model.get_submodule(site.added)
            end.register_forward_hook(lambda m, a, output, name=name: readers.follow(name, output))
        else:
            model.get_submodule(name).register_forward_hook(lambda m, a, output, name=name: known.append(name))
    with readers:
        found.inputs[0].call(model)
    return [waiting[name] for name in known if name in waiting]


@torch.no_grad()
def naive(found, chosen):
    """Layer by layer, both networks run from the start for each: what `calibrate` does in one pass."""
    network, errors = copy.deepcopy(found.model), {}
    for site in found.convertible:
        if len(site.sizes) > 1:
            old = network.get_submodule(site.name)
            form, rank = chosen[site.name]
            network = replace(network, old, from_moments(old, FORMS[form], rank, site.known))
    for site in order(found):
        fitting = Fitting(found, site, FORMS[chosen[site.name][0]], chosen[site.name][1], network)
        for batch in found.inputs:
            fitting.add_target(seen(found.model, site, batch)["output"])
        now = [seen(network, site, batch) for batch in found.inputs]
        layer, errors[site.name] = fitting.fit([n["x"] for n in now], [n.get("shortcut") for n in now])
        network = replace(network, network.get_submodule(site.name), layer)
    return network, errors


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_one_pass_gives_what_layer_by_layer_gives(name):
    x = smooth(24)
    found = survey(settled(networks.NETWORKS[name](), x), [x[:10], x[10:]])
    network, errors = calibrate(found, choice(found))
    wanted, wanted_errors = naive(found, choice(found))
    assert errors == pytest.approx(wanted_errors, rel=1e-4, abs=1e-6)
    state = wanted.state_dict()
    assert list(network.state_dict()) == list(state)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_at_full_rank_nothing_changes(name):
    x = smooth(24)
    dense = settled(networks.NETWORKS[name](), x)
    found = survey(dense, x)
    full = {s.name: ("pointwise, dense", found.conv(s).in_channels // found.conv(s).groups) for s in found.convertible}
    network, errors = calibrate(found, full)
    assert all(error < 1e-4 for error in errors.values()), errors
    with torch.no_grad():
        given, wanted = (list(watch.tensors(net(x.clone()))) for net in (network, dense))
    for a, b in zip(given, wanted, strict=True):
        assert (a - b).square().mean() < 1e-4 * b.var(), name


@pytest.mark.parametrize("name", ["residual", "shortcut after"])
def test_writing_in_place_changes_no_fit(name):
    x = smooth(24)
    both = []
    for kind in (name, f"{name}, in place"):
        torch.manual_seed(3)
        found = survey(settled(networks.NETWORKS[kind](), x), x)
        both.append((found.sites, calibrate(found, choice(found))))
    (plain_sites, (plain, _)), (sites, (inplace, _)) = both
    assert [(s.norm, s.added, s.rectified) for s in sites] == [(s.norm, s.added, s.rectified) for s in plain_sites]
    for a, b in zip(plain.state_dict().values(), inplace.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_network_data_and_survey_are_left_alone(name):
    x = smooth(12)
    dense = settled(networks.NETWORKS[name](), x)
    kept, state = x.clone(), copy.deepcopy(dense.state_dict())
    found = survey(dense, x)
    surveyed = copy.deepcopy(found.model.state_dict())
    calibrate(found, choice(found))
    assert torch.equal(x, kept)
    for before, network in ((state, dense), (surveyed, found.model)):
        assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_batches_of_different_image_sizes_are_fitted_together(monkeypatch):
    monkeypatch.setattr(moments, "_TAP_ROWS", 1 << 9)  # so that positions are chosen, not all taken
    x, large, flat = smooth(10), smooth(6, 18), smooth(8)[..., :8, :]
    dense = settled(networks.UNet(), x)
    found = survey(dense, [flat, x, large])
    network, _ = calibrate(found, choice(found))
    wanted, _ = naive(found, choice(found))
    for a, b in zip(network.state_dict().values(), wanted.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_last_layer_of_a_block_repairs_its_shortcut():
    """What conv1 loses reaches the sum through the shortcut, and conv3, at full rank, takes back what it can."""
    x = smooth(48)
    found = survey(settled(networks.Residual(), x), x)
    spoilt = {"conv1": ("depthwise first", 2)}
    whole = {"conv3": ("pointwise, dense", 12)}
    _, errors = calibrate(found, spoilt | whole)
    alone, _ = calibrate(found, spoilt)
    with torch.no_grad():
        bare = copy.deepcopy(found.model)
        bare.conv1, bare.bn1 = alone.conv1, alone.bn1
        sums = [seen(net, _site(found, "conv3"), Inputs.of(x))["output"] for net in (found.model, bare)]
    unrepaired = float((sums[0] - sums[1]).square().mean() / sums[0].var())
    assert errors["conv3"] < 0.8 * unrepaired


def _site(found, name):
    return next(site for site in found.sites if site.name == name)


def test_a_fit_is_far_nearer_than_the_closed_form_on_images_it_has_not_seen():
    x = smooth(96)
    dense = settled(networks.Residual(), x)
    found = survey(dense, x[:64])
    chosen = dict.fromkeys(("conv1", "conv2", "conv3"), ("depthwise first", 2))
    closed = copy.deepcopy(dense)
    for name in chosen:
        old = closed.get_submodule(name)
        ones = torch.ones(1, old.out_channels, dtype=torch.float64)
        site = _site(found, name)
        replace(closed, old, from_moments(old, FORMS["depthwise first"], 2, site.known, ones))
    network, _ = calibrate(found, chosen)
    with torch.no_grad():
        wanted = dense(x[64:])
        off, closed_off = ((net(x[64:]) - wanted).square().mean() for net in (network, closed))
    assert off < 0.5 * closed_off


def test_what_a_network_cannot_read_a_second_time_is_told_and_no_thread_is_left():
    class Tired(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.tired = conv(3, 8), conv(8, 8), False

        def forward(self, x):
            x = self.first(x)
            if self.tired:
                raise LookupError("tired")
            return self.second(x)

    found = survey(Tired().eval(), smooth(8))
    found.model.tired = True
    with pytest.raises(LookupError, match="tired"):
        calibrate(found, choice(found))


def test_an_interruption_reaches_the_caller_and_leaves_no_thread(monkeypatch):
    found = survey(settled(networks.Residual(), smooth(8)), smooth(8))
    fit, calls = Fitting.fit, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(self, *arguments)

    monkeypatch.setattr(Fitting, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(found, choice(found))


def test_nan_that_comes_up_between_survey_and_fit_names_the_layer():
    found = survey(settled(networks.Residual(), smooth(8)), smooth(8))
    found.inputs[0].tensors()[0][0] = float("nan")
    with pytest.raises(InputError, match="conv1 reads or gives NaN"):
        calibrate(found, choice(found))


@pytest.mark.parametrize("spoilt", ["constant", "zero", "dead", "one example", "one pixel"])
@pytest.mark.parametrize("form", FORMS)
def test_layers_without_variance_and_single_examples_give_finite_networks(spoilt, form):
    network = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 6), nn.Flatten(1), nn.LazyLinear(4)
    )
    x = smooth(6)
    network.eval()
    with torch.no_grad():
        if spoilt == "constant":
            x = torch.full_like(x, 2.0)
        elif spoilt == "zero":
            x = torch.zeros_like(x)
        elif spoilt == "one example":
            x = x[:1]
        elif spoilt == "one pixel":
            x = x[:1, :, :1, :1]
        network(x)
        if spoilt == "dead":
            network[1].bias.fill_(-100.0)
            network[3].bias.fill_(-100.0)
    found = survey(network, x)
    made, errors = calibrate(found, {site.name: (form, 2) for site in found.convertible})
    assert all(value.isfinite().all() for value in made.state_dict().values())
    assert all(error == error for error in errors.values())
    with torch.no_grad():
        wanted, given = network(x), made(x)
    assert (given - wanted).abs().max() < wanted.abs().max() + 0.1


def test_a_network_whose_layers_run_in_an_order_of_the_datas_is_refused():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = conv(3, 8), conv(3, 8), conv(8, 8)

        def forward(self, x):
            first, second = (self.a, self.b) if len(x) > 2 else (self.b, self.a)
            y = first(x)
            return self.last(torch.tanh(y) + torch.tanh(second(x)))

    found = survey(Choosing().eval(), [smooth(8), smooth(2)])
    with pytest.raises(InputError, match="in another order on other data"):
        calibrate(found, choice(found))
