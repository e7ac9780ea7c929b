"""Layers whose numbers are subnormal are named exactly, by their bits, and looking changes nothing."""

import copy
import io

import pytest
import torch
from rich.console import Console
from torch import nn

from separable import cost
from separable.cost.subnormal import counted, flushed, in_words
from separable.layers import SeparableConv2d

SMALL = {torch.float32: 1e-39, torch.float64: 1e-310, torch.bfloat16: 1e-39}


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), SeparableConv2d(4, 4, 3), nn.Flatten()
    ).eval()


def test_a_clean_network_has_none():
    model, x = network(), torch.randn(1, 2, 12, 12)
    assert cost.subnormal_weights(model) == cost.subnormal_activations(model, (x,)) == []
    assert cost.profile(model, x, repeats=1, compare=False).subnormal == []


@torch.no_grad()
def test_weights_biases_and_buffers_are_named_with_their_shares():
    model = network()
    model[0].weight[1] = 1e-39
    model[0].weight[2, 0, 0] = torch.tensor([0.0, -0.0, torch.finfo(torch.float32).tiny])  # none of them is subnormal
    model[1].running_mean[:3] = -1e-45
    model[3].conv_pw.bias[0] = 1.17e-38
    assert [(row.layer, row.tensor, row.share) for row in cost.subnormal_weights(model)] == [
        ("0", "weight", 0.25),
        ("3.conv_pw", "bias", 0.25),
        ("1", "running_mean", 0.75),
    ]


@torch.no_grad()
def test_shared_modules_and_weights_are_named_once():
    conv = nn.Conv2d(2, 2, 1)
    conv.weight.fill_(1e-40)
    tied = nn.Linear(2, 2, bias=False)
    tied.weight = conv.bias = nn.Parameter(torch.full((2,), 1e-40))
    model = nn.Sequential(conv, conv, tied)
    assert [str(row) for row in cost.subnormal_weights(model)] == ["0 weight 100 %", "0 bias 100 %"]


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_every_type_has_its_own_smallest_normal_number(dtype):
    small, tiny = SMALL[dtype], torch.finfo(dtype).tiny
    x = torch.tensor([small, -small, tiny, 0.0, 1.0, float("nan"), -float("inf")], dtype=dtype)
    assert counted(x) == (2, 7)
    assert flushed(x)[:2].tolist() == [0, 0]
    assert torch.equal(flushed(x)[2:].nan_to_num(), x[2:].nan_to_num())
    assert flushed(x[2:]).data_ptr() == x[2:].data_ptr(), "nothing is copied where there is nothing to do"


def test_a_complex_number_counts_as_two():
    assert counted(torch.complex(torch.ones(3), torch.full((3,), 1e-39)).conj()) == (3, 6)


def test_what_holds_no_floats_is_ignored():
    layer = nn.Linear(4, 4)
    quantized = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    for tensor in (torch.ones(3, dtype=torch.int32), torch.ones(3, dtype=torch.float16) * 1e-7, quantized):
        assert counted(tensor) == (0, 0)
    assert counted(layer.to("meta").weight) == counted(torch.zeros(0)) == counted(torch.eye(2).to_sparse()) == (0, 0)
    x = torch.full((3, 1), 1e-39)
    assert counted(x.expand(3, 1 << 40)) == (3, 3), "an expanded tensor counts for what it stores"


def test_numbers_are_seen_in_any_memory_order_and_by_samples():
    x = torch.ones(2, 6, 40, 40)
    x[:, 4] = 1e-39
    for given in (x, x.to(memory_format=torch.channels_last), x.transpose(0, 3), x[:, :, ::2]):
        assert counted(given)[0] * 6 == counted(given)[1]
        count, total = counted(given, most=1000)
        assert 700 < total < 1100
        assert count / total == pytest.approx(1 / 6, abs=0.03)


def test_they_are_seen_where_this_thread_takes_them_for_zeros():
    small = torch.full((3,), 1e-39)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        assert counted(small) == (3, 3)
        assert flushed(small).view(torch.int32).tolist() == [0, 0, 0]
    finally:
        torch.set_flush_denormal(False)


@torch.no_grad()
def test_layers_that_make_them_are_named_and_looking_changes_nothing():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(2)).train()
    model[0].weight[:] = torch.tensor([1e-39, 1.0]).view(2, 1, 1, 1)
    model.append(nn.BatchNorm1d(2).eval())
    x, state, drawn = torch.ones(1, 1, 4, 4), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = cost.subnormal_activations(model, (x,))
    assert [(row.layer, row.share) for row in found[:2]] == [("0", 0.5), ("1", 0.5)]
    assert [row.layer for row in found] == ["0", "1", "2", "4"], "the view of the third is none that it made"
    assert all(row.tensor == "activations" for row in found)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert x.eq(1).all()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model[4].training


@torch.no_grad()
def test_a_profile_shows_them():
    model = network()
    model[0].weight[:] = 1e-39
    model[0].bias[:] = 0
    measured = cost.profile(model, torch.rand(1, 2, 12, 12), repeats=1, compare=False)
    named = [(row["layer"], row["tensor"]) for row in measured.to_json()["subnormal"]]
    assert named[:2] == [("0", "weight"), ("0", "activations")]
    console = Console(width=160, file=io.StringIO())
    console.print(measured.table())
    shown = " ".join(console.file.getvalue().split())
    assert "Subnormal numbers: 0 weight 100 %, 0 activations" in shown
    assert "torch.set_flush_denormal(True)" in shown


def test_a_long_list_is_cut():
    found = [cost.Subnormal(f"layer{i}", "weight", 0.0001) for i in range(20)]
    assert in_words(found).endswith("layer7 weight 0.01 % and 12 more")
