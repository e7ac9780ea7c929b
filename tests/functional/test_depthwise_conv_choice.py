"""Depthwise convolution in training: values are right whichever way wins, and the winner is measured once a shape."""

import itertools
import time

import pytest
import torch

from separable import InputError, _native, functional
from separable.functional import depthwise_conv, depthwise_conv_choice, measure
from tolerance import tolerance

pytestmark = pytest.mark.skipif(bool(_native.missing), reason=f"no native library: {_native.missing}")

WAYS = ("native", "reference")
LAYOUTS = {"channels-last": torch.channels_last, "default": torch.contiguous_format}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(depthwise_conv, "_calls", {})


def measured(monkeypatch, *winners):
    """Let measurements be made of calls however short, and won in turn by `winners`; gives what was measured."""
    asked, turns = [], iter(winners)

    def fastest(ways, rounds):
        asked.append(list(ways))
        winner = next(turns)
        return {way: 10.0 ** -len(asked) if way == winner else 1.0 for way in ways}  # halves beat the whole

    monkeypatch.setattr(depthwise_conv_choice, "SHORT", 0.0)
    monkeypatch.setattr(depthwise_conv_choice, "fastest", fastest)
    return asked


def tensors(layout="default", channels=20, side=9):
    torch.manual_seed(0)
    x = torch.randn(2, channels, side, side).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    return x, torch.randn(channels, 1, 3, 3, requires_grad=True), torch.randn(channels, requires_grad=True)


def step(leaves, stride=1, activation=None, **more):
    y = functional.depthwise_conv2d(*leaves, stride, 1, activation=activation, **more)
    probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y, *torch.autograd.grad(y, leaves, probe)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("winners", list(itertools.product(WAYS, repeat=3)), ids="-".join)
def test_equals_the_reference_whichever_way_wins_each_direction(monkeypatch, winners, layout, stride):
    forward, of_input, of_weight = winners
    measured(monkeypatch, forward, of_input, of_input, of_weight)
    leaves = tensors(layout)
    found = step(leaves, stride, "relu")
    (call,) = depthwise_conv._calls.values()
    assert call.choice.forward == forward
    assert [(w.input, w.weight) for w in call.choice.backward.values()] == [(of_input, of_weight)]
    exact = step([t.detach().double().requires_grad_() for t in leaves], stride, "relu", impl="reference")
    for got, wanted, terms in zip(found, exact, (9, 9, 162, 162), strict=True):
        torch.testing.assert_close(got.double(), wanted, **tolerance(torch.float32, terms))
    assert found[0].is_contiguous(memory_format=LAYOUTS[layout])


def test_is_measured_once_a_shape_and_every_call_gives_the_same_bits(monkeypatch):
    leaves = tensors()
    asked = measured(monkeypatch, *["reference"] * 20)
    first = step(leaves)
    assert len(asked) == 4  # forward; backward as a whole and its two halves
    for _ in range(2):
        assert all(map(torch.equal, step(leaves), first))
    assert len(asked) == 4
    step(tensors(side=10))
    assert len(asked) == 8


def test_measuring_with_some_of_the_images_gives_the_whole_result(monkeypatch):
    monkeypatch.setattr(depthwise_conv_choice, "SHORT", 0.0)
    monkeypatch.setattr(depthwise_conv_choice, "TRIAL", 0.0)  # one image
    leaves = tensors()
    found, exact = step(leaves), step([t.detach().double().requires_grad_() for t in leaves], impl="reference")
    for got, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, **tolerance(torch.float32, 162))


def test_deterministic_algorithms_take_the_fixed_way_and_measure_nothing(monkeypatch):
    asked = measured(monkeypatch, *["reference"] * 20)
    leaves = tensors()
    step(leaves)  # measured, and won by torch
    before = len(asked)
    torch.use_deterministic_algorithms(True)
    try:
        found = step(leaves)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(asked) == before
    assert all(map(torch.equal, found, step(leaves, impl="native")))


def test_short_calls_are_not_measured(monkeypatch):
    asked = measured(monkeypatch)
    monkeypatch.setattr(depthwise_conv_choice, "SHORT", 10.0)
    assert all(map(torch.equal, step(tensors()), step(tensors(), impl="native")))
    assert not asked


def test_without_gradients_nothing_is_measured(monkeypatch):
    asked = measured(monkeypatch)
    with torch.no_grad():
        functional.depthwise_conv2d(*tensors(), padding=1)
    assert not asked


def test_the_faster_way_is_taken_if_it_gains_enough():
    def busy(seconds):
        def run():
            end = time.thread_time() + seconds
            while time.thread_time() < end:
                pass

        return run

    least = depthwise_conv_choice.fastest({"native": busy(0.002), "reference": busy(0.001)}, 4)
    assert depthwise_conv_choice._faster("native", "reference", least) == "reference"
    assert depthwise_conv_choice._faster("native", "reference", {"native": 1.0, "reference": 0.97}) == "native"
    hopeless = depthwise_conv_choice.fastest({"native": busy(0.001), "reference": busy(0.05)}, 4)
    assert list(hopeless) == ["native"]


def test_of_runs_in_a_row_the_warm_ones_count():
    """A way that is slow in its first run after another one."""
    last = [""]

    def way(name):
        def run():
            end = time.thread_time() + (5e-4 if last[0] == name else 2e-3)
            last[0] = name
            while time.thread_time() < end:
                pass

        return run

    ways = {name: way(name) for name in ("a", "b")}
    assert all(seconds > 1.5e-3 for seconds in measure.fastest(ways, 3).values())
    assert all(seconds < 1.5e-3 for seconds in measure.fastest(ways, 3, in_a_row=2).values())


def test_second_derivatives_go_through_either_way(monkeypatch):
    measured(monkeypatch, *["reference"] * 20)
    leaves = tensors()
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    second = []
    for x, weight, bias in (leaves, doubles):
        y = functional.depthwise_conv2d(x, weight, bias, padding=1)
        (gx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(gx.square().sum(), (x, weight)))
    for got, wanted in zip(*second, strict=True):
        assert (got.double() - wanted).norm() < 1e-5 * wanted.norm()


def test_a_bool_is_refused_also_after_the_call_that_it_equals():
    x, weight, bias = tensors()
    functional.depthwise_conv2d(x, weight, bias, stride=(1, 1))
    with pytest.raises(InputError, match="stride"):
        functional.depthwise_conv2d(x, weight, bias, stride=(True, True))


def test_explains_what_training_takes(monkeypatch):
    x, weight, _ = tensors()
    monkeypatch.setattr(depthwise_conv_choice, "SHORT", 10.0)
    ways = depthwise_conv.explain(x.detach(), weight.detach(), (1, 1), "same")
    assert list(ways)[1:] == [f"training, {d}" for d in ("forward", "gradient of input", "gradient of weight")]
    assert all(way == "native" and "known to win" in why for way, why in ways.values())
    measured(monkeypatch, "reference", "reference", "reference", "native")
    taken = depthwise_conv.explain(x.detach(), weight.detach(), (1, 1), "same")
    assert [way for way, _ in taken.values()][1:] == ["reference", "reference", "native"]
    assert all("measured: " in why for why in [why for _, why in taken.values()][1:])
