"""Forms are timed in the runtime that the network will run in; what cannot be timed there is said or left out."""

import math

import networks
import pytest
import torch
from networks import settled, smooth

from separable import runtimes
from separable.conversion import Study, convert, survey, thin, timing
from separable.conversion.table import Option, options
from separable.conversion.weigh import tabulate
from separable.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    x = smooth(16)
    return survey(settled(networks.Residual(), x), x)


@pytest.fixture(params=timing.TARGETS)
def target(request):
    reason = runtimes.why_not(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


def test_every_dense_layer_and_its_timed_forms_have_a_positive_time(found, target):
    table = tabulate(found)
    timing.time_options(found, table, target, timing.yardstick())
    for many in table.values():
        assert many[0].ms > 0
        timed = [option for option in many[1:] if option.ms is not None]
        assert len(timed) > 2
        assert all(option.ms > 0 for option in timed)


def test_the_layer_is_timed_with_its_norm_and_activation(found):
    sites = {site.name: site for site in found.sites}
    kinds = [type(part).__name__ for part in timing.neighbourhood(found, sites["conv1"], Option(None, 0, 1, 1))]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"]
    block = timing.neighbourhood(found, sites["conv2"], Option("polyadic", 4, 1, 1))
    assert [type(part).__name__ for part in block] == ["Sequential", "BatchNorm2d", "ReLU"]
    assert all(p.isfinite().all() for p in block.parameters())


def filled(rank):
    """Channels that whole vectors of the processor hold."""
    vector = {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 4)
    return math.ceil(rank / vector) * vector


@pytest.fixture
def clocked(monkeypatch):
    """Instead of a clock a count: each call takes what its filled vectors say, whatever the machine does."""
    asked = []

    def fastest(calls, rounds, wanted=(), in_a_row=1):
        options = [name for name in calls if isinstance(name, tuple) and (name[0] is None or isinstance(name[0], str))]
        asked.append(options)
        takes = {(form, rank): 1e-3 if form is None else 1e-4 + 1e-5 * filled(rank) for form, rank in options}
        return {name: takes.get(name, float(name == "yardstick")) for name in calls}  # what stands around: nothing

    monkeypatch.setattr(timing, "fastest", fastest)
    return asked


def test_layers_alike_are_timed_once_and_few_ranks_of_each_form(found, clocked):
    table = tabulate(found)
    timing.time_options(found, table, "torch", 1.0)
    assert len(clocked) == 4, "conv1, conv2 and conv3, between which channels can go, narrow"
    for calls in clocked:
        assert calls[0] == (None, 0)
        for form in {name for name, _ in calls} - {None, *thin.THIN}:
            assert sum(name == form for name, _ in calls) <= timing._RANKS


def test_between_two_ranks_time_grows_with_the_vectors_that_they_fill(found, clocked):
    table = {site.name: options(found, site, fit=False) for site in found.convertible}
    timing.time_options(found, table, "torch", 1.0)
    timed = [option for option in table["conv2"] if option.form == "pointwise, dense" and option.ms is not None]
    assert len(timed) > 4
    for option in timed:
        assert option.ms == pytest.approx(0.1 + 0.01 * filled(option.rank), rel=0.1)


def test_times_do_not_follow_the_speed_of_the_processor(found, clocked, monkeypatch):
    quick = {site.name: options(found, site, fit=False) for site in found.convertible}
    timing.time_options(found, quick, "torch", 1.0)
    steady, measured = timing.fastest, [0]

    def slower_and_slower(calls, rounds, wanted=(), in_a_row=1):
        measured[0] += 1
        return {name: seconds * 1.5 ** measured[0] for name, seconds in steady(calls, rounds).items()}

    monkeypatch.setattr(timing, "fastest", slower_and_slower)
    slow = {site.name: options(found, site, fit=False) for site in found.convertible}
    timing.time_options(found, slow, "torch", 1.0)
    for name in quick:
        assert [o.ms for o in slow[name] if o.ms] == pytest.approx([o.ms for o in quick[name] if o.ms])


def test_one_slow_call_does_not_lose_what_stands_around_a_layer(found, monkeypatch):
    """Whatever is dropped because its first run took long, times can be made of the rest."""
    steady = timing.fastest

    def only_the_dense_layer(calls, rounds, wanted=(), in_a_row=1):
        slow = {name: run for name, run in calls.items() if name in wanted or name == (None, 0)}
        return steady(slow, 1, wanted, in_a_row)

    monkeypatch.setattr(timing, "fastest", only_the_dense_layer)
    table = {site.name: options(found, site, fit=False) for site in found.convertible}
    timing.time_options(found, table, "torch", 1.0)
    assert all(many[0].ms > 0 and all(o.ms is None for o in many[1:]) for many in table.values())


def test_a_layer_that_runs_twice_counts_twice(clocked):
    found = survey(networks.Twice().eval(), smooth(8))
    table = {site.name: options(found, site, fit=False) for site in found.convertible}
    timing.time_options(found, table, "torch", 1.0)
    assert table["again"][0].ms == pytest.approx(2 * table["first"][0].ms)


def test_random_numbers_and_weights_stay_as_they_are(found):
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in found.model.state_dict().items()}
    timing.time_options(found, {site.name: options(found, site) for site in found.convertible}, "torch", 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[key], value) for key, value in found.model.state_dict().items())


def test_an_unknown_target_is_one_sentence():
    with pytest.raises(InputError, match="target = tensorrt: must be one of accelerate, onnxruntime, openvino, torch"):
        convert(networks.Residual(), smooth(4), {"macs": 0.5}, target="tensorrt")


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "accelerate"])
def test_a_target_that_is_not_installed_is_one_sentence_said_before_any_work(target, monkeypatch):
    monkeypatch.setattr(runtimes, "why_not", lambda name: f"{name} is not installed" if name == target else None)
    monkeypatch.setattr("separable.conversion.study.survey", lambda *a, **k: pytest.fail("the network was looked at"))
    with pytest.raises(
        InputError, match=f"target = {target}: cannot be used here: {target} is not installed"
    ) as caught:
        Study(networks.Residual(), smooth(4), target=target)
    assert "\n" not in str(caught.value)


def test_torch_is_the_target_where_the_native_library_does_not_stand(monkeypatch):
    monkeypatch.setattr(runtimes, "why_not", lambda name: "no library" if name == "accelerate" else None)
    assert timing.check_target(None) == "torch"
    monkeypatch.setattr(runtimes, "why_not", lambda name: None)
    assert timing.check_target(None) == "accelerate"
