"""A network goes in, a cheaper one that gives nearly the same comes out, and bad input is told in one sentence."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from separable import cost, progress
from separable.conversion import calibrate, convert, factorize, forms, plan, survey
from separable.conversion.forms import replace
from separable.conversion.survey import in_groups
from separable.errors import InputError
from separable.layers import SeparableConv1d, SeparableConv2d, SeparableConv3d


class Residual(nn.Module):
    """Convolutions of every kind that the survey tells apart, around one shortcut."""

    def __init__(self, inplace=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.narrow = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.mix = nn.Conv2d(12, 16, 1)
        self.linear, self.inplace = nn.Linear(16, 5), inplace

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=self.inplace)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)), inplace=self.inplace)))
        if self.inplace:
            y += x
        else:
            y = x + y
        return self.linear(self.mix(F.relu(self.narrow(F.relu(y)))).mean((2, 3)))


def settled(network, x):
    """The network in eval mode with batch-norm statistics of its own activations."""
    network.train()
    with torch.no_grad():
        for _ in range(30):
            network(x)
    return network.eval()


@pytest.fixture
def images():
    torch.manual_seed(0)
    x = F.avg_pool2d(torch.randn(96, 3, 20, 20), 5, 1) * 5  # smooth, as images are
    return x[..., :14, :14]


@pytest.fixture
def dense(images):
    return settled(Residual(), images)


def error(network, reference, x):
    with torch.no_grad():
        given, wanted = network(x), reference(x)
    return float((given - wanted).square().mean() / wanted.var(0).mean())


@pytest.mark.parametrize("inplace", [False, True])
def test_survey_sees_order_norms_and_shortcuts(images, inplace):
    seen = {site.name: site for site in survey(settled(Residual(inplace), images), images).sites}
    assert list(seen) == ["conv1", "conv2", "conv3", "narrow", "mix"]
    assert [site.norm for site in seen.values()] == ["bn1", "bn2", "bn3", None, None]
    assert seen["conv3"].added == "bn3"
    assert seen["conv1"].added is None, "its batch norm is followed by an activation"
    assert "4 groups" in seen["narrow"].kept
    assert "pointwise" in seen["mix"].kept


def test_an_addition_after_an_activation_in_place_is_not_taken_for_the_layers_own(images):
    class Late(Residual):
        def forward(self, x):
            x = self.bn1(self.conv1(x))
            y = F.relu_(self.bn2(self.conv2(x)))
            return self.linear(self.mix(x + y).mean((2, 3)))

    sites = {site.name: site for site in survey(settled(Late(), images), images).sites}
    assert sites["conv2"].added is None


def test_a_norm_that_is_not_the_only_reader_takes_no_constant(images):
    class Twice(Residual):
        def forward(self, x):
            x = self.conv1(x)
            return self.linear(self.mix(self.bn1(x) + x).mean((2, 3)))

    sites = {site.name: site for site in survey(settled(Twice(), images), images).sites}
    assert sites["conv1"].norm is None


@pytest.mark.parametrize("measure", ["macs", "params"])
@pytest.mark.parametrize("share", [0.8, 0.6])
def test_budget_is_kept_and_counted_on_the_result(dense, images, measure, share):
    done = convert(dense, images, {measure: share})
    counted = cost.count(done.model, images[:1])
    assert done.macs_after == counted.macs
    assert done.params_after == counted.params
    assert getattr(done, f"{measure}_after") <= share * getattr(done, f"{measure}_before")
    assert all(layer.macs_after <= layer.macs_before for layer in done.layers)


def test_a_count_is_a_budget_too(dense, images):
    limit = cost.count(dense, images[:1]).macs * 7 // 10
    assert 0.9 * limit < convert(dense, images, {"macs": limit}).macs_after <= limit


def test_a_budget_of_one_takes_only_forms_that_are_exact(dense, images):
    done = convert(dense, images, {"macs": 1.0})
    assert done.macs_after <= done.macs_before
    assert error(done.model, dense, images) < 1e-4


def test_more_budget_means_less_error(dense, images):
    errors = [error(convert(dense, images, {"macs": share}).model, dense, images) for share in (0.9, 0.6, 0.45)]
    assert errors[0] < errors[1] < errors[2] < 0.5, errors


def test_calibration_is_far_nearer_than_the_closed_form_on_images_it_has_not_seen(dense, images):
    separable, closed = copy.deepcopy(dense), None
    for name in ("conv1", "conv2", "conv3"):
        conv = separable.get_submodule(name)
        replace(separable, conv, factorize(conv, rank=2))
    closed = copy.deepcopy(separable)
    errors = calibrate(separable, dense, images[:64])
    assert set(errors) == {"conv1", "conv2", "conv3"}
    assert error(separable, dense, images[64:]) < 0.3 * error(closed, dense, images[64:])


def test_the_last_layer_of_a_block_repairs_its_shortcut(dense, images):
    """conv1 is spoilt beyond repair, so the sum after the shortcut can only be saved by conv3."""
    separable = copy.deepcopy(dense)
    with torch.no_grad():
        separable.bn1.bias += 0.3
    replace(separable, separable.conv3, factorize(separable.conv3))
    before = error(separable, dense, images)
    calibrate(separable, dense, images)
    assert error(separable, dense, images) < 0.2 * before


def test_the_given_network_and_its_mode_are_left_alone(dense, images):
    dense.train()
    dense.bn2.eval()
    state = copy.deepcopy(dense.state_dict())
    done = convert(dense, images, {"macs": 0.6})
    assert dense.training
    assert not dense.bn2.training
    assert all(torch.equal(state[name], value) for name, value in dense.state_dict().items())
    assert done.model.training
    assert not done.model.bn2.training
    assert all(p.requires_grad for p in done.model.parameters())
    assert not any(p is q for p in done.model.parameters() for q in dense.parameters())


@pytest.mark.parametrize(
    ("network", "shape", "kind"),
    [
        (nn.Sequential(nn.Conv1d(4, 24, 9), nn.ReLU(), nn.Conv1d(24, 24, 9), nn.ReLU()), (48, 4, 40), SeparableConv1d),
        (nn.Sequential(nn.Conv3d(2, 12, 3), nn.ReLU(), nn.Conv3d(12, 12, 3)), (8, 2, 7, 7, 7), SeparableConv3d),
        (nn.Conv2d(8, 16, 3, padding="same"), (32, 8, 9, 9), SeparableConv2d),
    ],
)
def test_one_three_and_no_enclosing_dimensions(network, shape, kind):
    torch.manual_seed(0)
    x = torch.randn(shape)
    done = convert(network, x, {"macs": 0.7})
    assert any(isinstance(module, kind) for module in done.model.modules())
    assert error(done.model, network, x) < 0.6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_are_kept(dense, images, dtype):
    done = convert(copy.deepcopy(dense).to(dtype), images, {"macs": 0.6})
    assert {p.dtype for p in done.model.parameters()} == {dtype}
    assert error(done.model.float(), dense, images) < 0.3


def test_a_layer_run_twice_and_one_under_two_names_are_converted_once(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 16, 3, padding=1)
            self.again = nn.Conv2d(16, 16, 3, padding=1)
            self.alias = self.again

        def forward(self, x):
            return self.alias(torch.tanh(self.again(torch.tanh(self.first(x))))).mean((2, 3))

    network = Twice()
    done = convert(network, images, {"macs": 0.5})
    assert done.model.again is done.model.alias
    assert isinstance(done.model.again, SeparableConv2d)
    assert [layer.name for layer in done.layers] == ["first", "again"]
    assert done.macs_after <= 0.5 * done.macs_before


def test_layers_that_share_weights_stay(images):
    network = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Conv2d(12, 12, 3))
    network[2].weight = network[1].weight
    notes = {site.name: site.kept for site in survey(network, images).sites}
    assert "shares its weights" in notes["1"]
    assert "shares its weights" in notes["2"]


def test_frozen_and_statless_norms_are_survived(images):
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12, track_running_stats=False), nn.Conv2d(12, 12, 3), nn.BatchNorm2d(12)
    )
    network[3].requires_grad_(False)
    done = convert(network.eval(), images, {"macs": 0.6})
    assert not any(p.requires_grad for p in done.model[3].parameters())
    assert error(done.model, network, images) < 0.4


def test_batches_of_pairs_a_generator_and_a_tensor_give_the_same(dense, images):
    labels = torch.zeros(len(images))
    pairs = [(images[:50], labels[:50]), (images[50:], labels[50:])]
    one, two = (convert(dense, data, {"macs": 0.6}) for data in (pairs, (pair for pair in pairs)))
    assert one.to_json() == two.to_json()
    torch.testing.assert_close(one.model(images), two.model(images))


def test_latency_is_measured_and_a_budget_out_of_reach_says_the_best(dense, images):
    with pytest.raises(InputError, match="the fastest network found takes"):
        convert(dense, images, {"latency": 1e-3})
    choices = plan(survey(dense, images), {"latency": 1.0})
    assert all(choice.ms_before > 0 for choice in choices if not choice.note or "worth" in choice.note)


def test_a_latency_budget_out_of_reach_says_what_to_do_on_a_busy_machine(dense, images):
    with pytest.raises(InputError, match=r"measured on this machine as it was; where it was busy, .* budget of macs"):
        convert(dense, images, {"latency": 1e-3})


@pytest.mark.parametrize("measure", ["macs", "params"])
def test_a_budget_out_of_reach_is_refused_before_anything_is_fitted(dense, images, measure, monkeypatch):
    found = survey(dense, images)
    with pytest.raises(InputError, match=rf"the least {measure} this network can have is [\d,]+ of ") as caught:
        plan(found, {measure: 2})
    least = int(re.search(r"is ([\d,]+) of", str(caught.value)).group(1).replace(",", ""))
    done = convert(dense, images, {measure: least})
    assert getattr(done, f"{measure}_after") == least, "the least that is told can be had"

    monkeypatch.setattr(forms, "_fitted", lambda *_: pytest.fail("a form was fitted"))
    for amount in (0.001, 2, least - 1):
        with pytest.raises(InputError, match="cannot be met"):
            plan(found, {measure: amount})


@pytest.mark.parametrize("measure", ["macs", "params"])
def test_a_count_above_the_dense_networks_is_refused_at_once_and_the_whole_is_not(dense, images, measure, monkeypatch):
    found = survey(dense, images)
    whole = getattr(found, measure)
    for amount in (1, whole):
        assert sum(getattr(choice, f"{measure}_after") for choice in plan(found, {measure: amount})) <= whole
    monkeypatch.setattr(forms, "_fitted", lambda *_: pytest.fail("a form was fitted"))
    for amount in (whole + 1, 1e12):
        with pytest.raises(InputError, match=f"is more than the dense network's {whole:,}; there is nothing to conv"):
            plan(found, {measure: amount})


@pytest.mark.parametrize(("examples", "told"), [(1, "calibrated on 1 example;"), (63, "on 63 examples;"), (64, None)])
def test_few_examples_are_warned_of_where_progress_is_shown(dense, images, examples, told, capsys):
    with progress.shown():
        convert(dense, images[:examples], {"macs": 0.6})
    lines = [line for line in capsys.readouterr().err.splitlines() if "some hundreds are needed" in line]
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]


def test_result_is_shown_as_a_table_and_as_plain_values(dense, images):
    import json

    done = convert(dense, images, {"macs": 0.6})
    assert json.loads(json.dumps(done.to_json()))["macs_before"] == done.macs_before
    assert done.table().row_count == len(done.layers) == 5


@pytest.mark.parametrize("measure", ["macs", "latency"])
def test_the_callers_random_numbers_stay_as_they_are(dense, images, measure):
    before = torch.get_rng_state()
    convert(dense, images, {measure: 1.0})
    assert torch.equal(torch.get_rng_state(), before)


def test_the_network_inside_a_compiled_one_is_converted(dense, images):
    done, plain = (convert(network, images, {"macs": 0.6}) for network in (torch.compile(dense), dense))
    assert type(done.model) is Residual
    torch.testing.assert_close(done.model(images), plain.model(images))


def test_a_group_holds_what_fits_and_a_large_site_stands_alone():
    assert in_groups([3, 4, 9, 1, 6, 2], lambda size: size, 7) == [[3, 4], [9], [1, 6], [2]]


def nan_inside(network):
    with torch.no_grad():
        network.conv2.weight[0] = float("nan")
    return network


BAD = {
    "no data": (lambda n, x: convert(n, x[:0]), "holds no examples"),
    "no batches": (lambda n, x: convert(n, []), "holds no examples"),
    "not data": (lambda n, x: convert(n, "images"), "must be a tensor"),
    "not tensors": (lambda n, x: convert(n, [1, 2]), "each batch must be a tensor"),
    "channels": (lambda n, x: convert(n, x[:, :1]), "conv1 reads 3 channels and is given 1"),
    "rank": (lambda n, x: convert(n, x.mean((1, 2, 3))), "data"),
    "dtype": (lambda n, x: convert(n, (x * 9).to(torch.uint8)), "the model cannot read it"),
    "nan data": (lambda n, x: convert(n, torch.full_like(x, float("nan"))), "NaN or infinite"),
    "nan inside": (lambda n, x: convert(nan_inside(n), x), "conv2 gives NaN or infinite values"),
    "budget out of reach": (
        lambda n, x: convert(n, x, {"macs": 0.01}),
        r"the least macs this network can have is 0\.\d+",
    ),
    "budget unknown": (lambda n, x: convert(n, x, {"flops": 0.5}), "must be one of"),
    "budget negative": (lambda n, x: convert(n, x, {"macs": -1}), "positive"),
    "budget of two": (lambda n, x: convert(n, x, {"macs": 0.5, "params": 0.5}), "must be one of"),
    "latency above one": (lambda n, x: convert(n, x, {"latency": 3}), "at most 1"),
    "nothing to convert": (lambda n, x: convert(nn.Conv2d(3, 4, 1), x), "no convolution that can be made separable"),
    "no convolution": (lambda n, x: convert(nn.Flatten(), x), "runs no convolution"),
    "not a model": (lambda n, x: convert(lambda x: x, x), "torch.nn.Module"),
    "on meta": (lambda n, x: convert(n.to("meta"), x), "model = Residual: is on the meta device and has no values"),
    "data on meta": (lambda n, x: convert(n, x.to("meta")), "data = .*: is on the meta device and has no values"),
    "no samples": (lambda n, x: convert(n, x, samples=0), "at least 1"),
    "nothing to calibrate": (lambda n, x: calibrate(copy.deepcopy(n), n, x), "has no separable layer"),
    "networks that differ": (lambda n, x: calibrate(nn.Flatten(), n, x), "has no module conv1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(dense, images, case):
    call, sentence = BAD[case]
    with pytest.raises(InputError, match=sentence) as caught:
        call(dense, images)
    assert "\n" not in str(caught.value)
