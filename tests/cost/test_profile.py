"""Where time goes and what bounds it: attribution by a clock that we control, limits and savings on the real one."""

import importlib
import io
import itertools
import json

import pytest
import torch
from rich.console import Console
from torch import nn

from separable import _native, cost
from separable.cost import Machine, measure_machine, timing
from separable.cost.count import Count, LayerCount
from separable.errors import InputError
from separable.layers import SeparableConv2d

profiling = importlib.import_module("separable.cost.profile")

MACHINE = Machine("a machine", 1, peak_gflops=100.0, bandwidth_gb_s=10.0, cache_gb_s=50.0, cache_bytes=2**20)


def network():
    return nn.Sequential(
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        SeparableConv2d(16, 8, 3, activation="relu"),
        nn.Conv2d(8, 4, (1, 5), stride=2, dilation=(1, 2)),
        nn.Flatten(),
        nn.Linear(4 * 9 * 5, 3),
    )


def test_each_layer_gets_the_time_of_its_own_operations(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(timing, "clock_s", lambda device: next(ticks) / 1e3)  # each reading is 1 ms after the last
    measured = cost.profile(network(), torch.zeros(2, 8, 20, 20), repeats=3, compare=False)
    assert measured.network_ms == pytest.approx(1)
    assert measured.spread == pytest.approx(0, abs=1e-9)
    assert {(layer.count.name, layer.count.kind): round(layer.measured_ms) for layer in measured.layers} == {
        ("0", "activation"): 1,
        ("1", "dense"): 1,
        ("2", "norm"): 1,
        ("3.conv_dw", "depthwise"): 1,
        ("3.conv_pw", "pointwise"): 1,
        ("3", "activation"): 1,
        ("4", "dense"): 1,
        ("6", "linear"): 1,
    }
    assert measured.layers_ms == pytest.approx(8)
    assert measured.outside_ms == pytest.approx(1 - 8)


def test_a_layer_of_more_work_takes_longer_on_the_real_clock():
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 1, 1))
    large, small = cost.profile(model, torch.rand(1, 64, 56, 56), repeats=5, compare=False).layers
    assert large.count.macs == 576 * small.count.macs
    assert large.measured_ms > 3 * small.measured_ms > 0


@pytest.mark.parametrize(
    ("macs", "bytes", "measured_ms", "predicted_ms", "bound", "resident"),
    [
        (50_000_000, 1_000_000, 1.5, 1.0, "compute", True),  # 1e8 FLOPs at 1e11 a second
        (50_000_000, 20_000_000, 3.0, 2.0, "memory", False),  # 2e7 bytes at 1e10 a second
        (50_000, 1_000_000, 0.03, 0.02, "memory", True),  # the same bytes at the rate of the caches
        (50_000_000, 1_000_000, 2.1, 1.0, "overhead", True),  # the roof explains less than half
        (50_000_000, 1_000_000, 0.9, 1.0, "compute", True),  # faster than the roof: measured low
    ],
)
def test_the_roof_and_the_word_follow_from_the_machines_limits(macs, bytes, measured_ms, predicted_ms, bound, resident):
    layer = LayerCount("a", "dense", macs=macs, bytes=bytes, calls=1)
    (found,) = profiling._layers(Count([layer]), {("a", "dense"): measured_ms}, MACHINE)
    assert found.predicted_ms == pytest.approx(predicted_ms)
    assert (found.bound, found.resident) == (bound, resident)


def test_the_spread_says_when_the_machine_was_busy():
    assert timing.spread([10.0, 10.0, 10.0, 50.0, 10.0]) == 0  # one disturbed pass is what medians are for
    assert timing.spread([10.0, 20.0, 30.0, 40.0, 50.0]) == pytest.approx(20 / 30)
    assert timing.spread([10.0]) == 0
    quiet = profiling.Profile(Count(), MACHINE, 10.0, 0.05, 0.1, 0.0, 5)
    assert "spans 5% of the median." in quiet.table().caption
    assert "busy" in profiling.Profile(Count(), MACHINE, 10.0, 0.5, 0.1, 0.0, 5).table().caption
    assert profiling.Profile(Count(), MACHINE, 10.0, 0.05, 3.0, 0.0, 5).busy


def test_what_medians_leave_out_is_told(monkeypatch):
    ms = iter([{"a": 1.0, "b": 1.0}] * 2 + [{"a": 9.0, "b": 1.0}, {"a": 1.0, "b": 9.0}, {"a": 1.0, "b": 9.0}])
    monkeypatch.setattr(timing, "_timed_pass", lambda *_: next(ms))
    found = timing.time_in_turn(nn.Identity(), (torch.zeros(1),), 3)
    assert found.layer_ms == {"a": 1.0, "b": 9.0}
    assert found.interrupted_ms == 0
    ms = iter(
        [{}] * 2 + [{"a": 9.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 9.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 9.0}]
    )
    found = timing.time_in_turn(nn.Identity(), (torch.zeros(1),), 3)
    assert found.layer_ms == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert found.interrupted_ms == 11 - 3


def test_an_operation_that_only_this_device_has_is_not_lost():
    counted = Count([LayerCount("a", "linear", calls=1), LayerCount("b", "unused", params=3)])
    layers = profiling._layers(counted, {("a", "linear"): 1.0, ("a", "copy"): 2.0}, MACHINE)
    assert [(layer.count.name, layer.count.kind, layer.measured_ms) for layer in layers] == [
        ("a", "linear", 1.0),
        ("a", "copy", 2.0),
    ]


def test_a_dense_layer_is_compared_with_a_separable_one_on_paper_and_on_the_clock():
    measured = cost.profile(network(), torch.rand(2, 8, 20, 20), repeats=3)
    savings = {layer.count.name: layer.separable for layer in measured.layers if layer.separable}
    assert list(savings) == ["1", "4"]
    first, second = savings["1"], savings["4"]
    assert (first.dense_macs, first.macs) == (2 * 400 * 16 * 8 * 9, 2 * 400 * (8 * 9 + 8 * 16))
    assert first.macs_ratio == pytest.approx(1 / 16 + 1 / 9)
    assert (first.dense_params, first.params) == (16 * 8 * 9, 8 * 9 + 8 * 16)
    assert second.macs_ratio == pytest.approx(1 / 4 + 1 / 5)
    assert (second.dense_params, second.params) == (4 * 8 * 5 + 4, 8 * 5 + 8 * 4 + 4)
    for saving in savings.values():
        assert saving.ms > 0
        assert saving.dense_ms > 0
        assert saving.in_words() == f"{saving.macs_ratio:.0%} / {saving.ms_ratio:.0%}"


@pytest.mark.parametrize(("dims", "conv"), [(1, nn.Conv1d), (3, nn.Conv3d)])
def test_sequences_and_volumes_are_compared_too(dims, conv):
    measured = cost.profile(conv(6, 6, 3, padding=1), torch.rand(1, 6, *[7] * dims), repeats=1)
    assert measured.layers[0].separable.macs == 7**dims * (6 * 3**dims + 36)


def test_the_network_and_its_input_are_left_as_they_were():
    model, x = network(), -torch.rand(2, 8, 20, 20)
    model.train()
    model[3].eval()
    modes = [module.training for module in model.modules()]
    before, given = {k: v.clone() for k, v in model.state_dict().items()}, x.clone()
    cost.profile(model, x, repeats=1)
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(x, given, rtol=0, atol=0)  # the first layer writes into its input
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_this_machine_does_arithmetic_and_moves_bytes():
    machine = measure_machine("cpu", samples=4)
    assert machine.device
    assert machine.threads == torch.get_num_threads()
    assert 1 < machine.peak_gflops < 1e5
    assert 0.5 < machine.bandwidth_gb_s <= machine.cache_gb_s < 1e5


@pytest.mark.skipif(bool(_native.missing), reason=f"no native library: {_native.missing}")
def test_what_a_layer_that_runs_as_one_spares_stands_by_itself(monkeypatch):
    """Timed in parts, its layers take more than the whole network: that is no time outside of them below zero."""
    monkeypatch.setattr(timing, "_whole_pass_ms", lambda *_: 9.0 if _native._apart.get() else 5.0)
    layer, x = SeparableConv2d(8, 8, 3, padding=1), torch.randn(1, 8, 9, 9)
    fused = cost.profile(layer, x.to(memory_format=torch.channels_last), repeats=3, compare=False)
    assert (fused.network_ms, fused.fused_ms) == (5, 4)
    assert fused.outside_ms == pytest.approx(9 - fused.layers_ms - fused.interrupted_ms)
    assert cost.profile(layer, x, repeats=3, compare=False).fused_ms == 0  # apart anyway
    text = io.StringIO()
    Console(file=text, width=140).print(fused.table())
    assert "spared where layers run as one" in text.getvalue()
    assert "-4.000" in text.getvalue()


def test_table_and_json_say_the_same():
    measured = cost.profile(network(), torch.rand(2, 8, 20, 20), repeats=1)
    data = json.loads(json.dumps(measured.to_json()))
    parts_ms = data["layers_ms"] + data["interrupted_ms"] + data["outside_ms"] - data["fused_ms"]
    assert data["network_ms"] == pytest.approx(parts_ms)
    assert data["layers_ms"] == pytest.approx(sum(layer["measured_ms"] for layer in data["layers"]))
    assert data["machine"]["peak_gflops"] == measured.machine.peak_gflops
    assert data["layers"][1]["separable"]["macs"] == measured.layers[1].separable.macs
    text = io.StringIO()
    Console(file=text, width=140).print(measured.table())
    for said in ("3.conv_dw", "depthwise", "17% / ", "outside the layers", "whole network", "GB/s"):
        assert said in text.getvalue()


class Moody(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x + 1 if self.calls == 1 else x * 2 + 1


def test_a_network_that_runs_differently_each_time_is_refused():
    with pytest.raises(InputError, match="must run the same operations in each pass"):
        cost.profile(Moody(), torch.zeros(3), repeats=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"example": torch.zeros(2, 7, 20, 20)}, r"layer '1' .* given \[2, 7, 20, 20\]"),
        ({"example": torch.zeros(2, 8, 20, 20, device="meta")}, "no values to run on"),
        ({"example": torch.zeros(2, 8, 20, 20), "repeats": 0}, "repeats = 0: must be a whole number of at least 1"),
        ({"example": torch.zeros(2, 8, 20, 20), "repeats": 2.5}, "repeats = 2.5"),
        ({"example": torch.zeros(2, 8, 20, 20, dtype=torch.float64)}, "refuses it"),
        ({"example": "image"}, "example = str"),
    ],
)
def test_mistakes_are_told_in_one_sentence(options, said):
    model = network()
    with pytest.raises(InputError, match=said):
        cost.profile(model, **options)
    assert model.training


def test_calls_are_timed_by_turns(monkeypatch):
    now = itertools.count()
    monkeypatch.setattr(timing, "clock_s", lambda device: float(next(now)))
    order = []
    taken = cost.interleaved_ms({"a": lambda: order.append("a"), "b": lambda: (order.append("b"), next(now))}, 3, 1)
    assert order == ["a", "b"] * 4
    assert taken == {"a": 1000.0, "b": 2000.0}
    with pytest.raises(InputError, match="rounds = 0: must be a whole number of at least 1"):
        cost.interleaved_ms({}, 0)


def test_interruptions_are_never_less_than_nothing(monkeypatch):
    """Medians of several layers may add up to more than the median pass: (3, 3, 0) and (3, 0, 3) to 6, passes to 3."""
    passes = iter([{}, {}, {("a", "dense"): 3.0, ("b", "dense"): 3.0}, {("a", "dense"): 3.0, ("b", "dense"): 0.0},
                   {("a", "dense"): 0.0, ("b", "dense"): 3.0}])  # fmt: skip
    monkeypatch.setattr(timing, "_recorded_pass", lambda *_: ([], {}))
    monkeypatch.setattr(timing, "_timed_pass", lambda *_: next(passes))
    assert timing.time_in_turn(nn.Identity(), (torch.zeros(1),), 3).interrupted_ms == 0
