"""The forms of a dense convolution: each right on any shape, chosen once, kept with the network."""

import itertools
import pickle

import pytest
import torch
from torch import nn

from separable import _native, accelerate
from separable.acceleration import accelerated
from separable.acceleration.choose import Choices
from separable.acceleration.operations import onednn_conv
from separable.acceleration.operations.dense_conv import DIRECT, ONEDNN

pytestmark = pytest.mark.skipif(bool(_native.missing), reason=f"no native kernels: {_native.missing}")
FORMS = {"direct": DIRECT, "2x2": 2, "4x4": 4, "oneDNN": ONEDNN}


class Always(dict):
    """One form for every shape that has it."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def get(self, key, default=None):
        return self.form


class Block(nn.Module):
    """A convolution whose result is added to, before or after its activation, between layers that change the layout."""

    def __init__(self, conv, activation, order):
        super().__init__()
        self.first, self.conv = nn.Conv2d(5, conv.in_channels, 1), conv
        self.activation, self.order = activation, order
        self.shortcut = nn.Conv2d(5, conv.out_channels, 1, conv.stride)
        self.last = nn.Conv2d(conv.out_channels, 7, 1)

    def forward(self, x):
        y, other = self.conv(self.first(x)), self.shortcut(x)
        if self.order == "none":
            return self.last(self.activation(y))
        return self.last(self.activation(y) + other if self.order == "first" else self.activation(y + other))


def with_form(network, form, x):
    fast = accelerate(network)
    fast.choices = Choices(tune=False, forms=Always(form))
    fast.plan(x)
    return fast


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "kernel", "stride", "dilation"),
    [
        (16, 24, 1, 3, 1, 1),
        (8, 40, 1, 3, 2, 1),
        (16, 32, 4, 3, 1, 1),
        (32, 32, 2, 3, 2, 2),
        (9, 17, 1, 5, 1, 2),
        (24, 16, 1, 1, 2, 1),
    ],
)
@torch.no_grad()
def test_every_form_gives_the_same_values(form, inputs, outputs, groups, kernel, stride, dilation):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, groups)
    named = []
    for activation, order in itertools.product((nn.Identity(), nn.ReLU(), nn.SiLU()), ("none", "first", "last")):
        block = Block(conv, activation, order).eval()
        x = torch.randn(3, 5, 13, 10)
        expected = block.double()(x.double())
        fast = with_form(block.float(), FORMS[form], x)
        for given in (x, torch.randn(5, 5, 13, 10)[1:4].copy_(x)):  # the second begins within its storage
            assert ((fast(given) - expected).abs().max() / expected.abs().max()).item() < 1e-5, (activation, order)
        named += [row.kernel for row in fast.report.rows if row.layer == "conv"]
    if form == "oneDNN" and torch.backends.mkldnn.is_available():
        assert set(named) == {"onednn_conv"}


@torch.no_grad()
def test_onednn_leaves_what_lies_around_its_result_alone():
    network = nn.Sequential(nn.Conv2d(4, 16, 3, 2, 1, groups=2), nn.ReLU(), nn.Conv2d(16, 6, 3, 2)).eval()
    x = torch.randn(2, 4, 17, 19).contiguous(memory_format=torch.channels_last)
    fast, expected = with_form(network, ONEDNN, x), network(x)
    kept = [fast(x) for _ in range(3)]
    fast(torch.randn_like(x))
    for made in kept:
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_choice_is_measured_once_and_travels():
    network = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)).eval()
    x = torch.randn(1, 16, 24, 24)
    fast = accelerate(network, x)
    chosen = dict(fast.choices.forms)
    assert chosen
    assert fast.choices.seconds > 0
    again = pickle.loads(pickle.dumps(fast))
    torch.testing.assert_close(again(x), fast(x), rtol=0, atol=0)
    assert again.choices.forms == chosen
    assert again.choices.seconds == 0
    ruled = accelerate(network, x, tune=False)
    assert not ruled.choices.forms
    assert "onednn_conv" not in {row.kernel for row in ruled.report.rows}


@torch.no_grad()
def test_a_form_that_this_machine_lacks_is_not_taken(monkeypatch):
    layer, x = nn.Conv2d(16, 16, 3, 2).eval(), torch.randn(1, 16, 9, 9)
    expected = layer(x)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    fast = with_form(layer, ONEDNN, x)
    assert [row.kernel for row in fast.report.rows] == ["dense_conv"]
    torch.testing.assert_close(fast(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_weights_that_onednn_packed_are_shared_and_counted():
    layer = nn.Conv2d(64, 64, 3, 2, bias=False).eval()
    fast = with_form(layer, ONEDNN, torch.randn(1, 64, 20, 20))
    alone = fast.report.bytes
    assert alone >= 4 * layer.weight.numel()
    for size in range(21, 29):
        fast(torch.randn(1, 64, size, size))
    assert fast.report.plans == 9
    assert fast.report.bytes < 1.5 * alone


@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_forms_are_timed_on_any_number_of_threads(threads):
    network = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, 2)).eval()
    x, before = torch.randn(2, 32, 20, 20), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = accelerate(network, x)
        torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-5)
        assert len(fast.choices.forms) == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_what_is_not_a_number_stays_so_in_every_form(form):
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)).eval()
    x = torch.randn(1, 16, 24, 24)
    x[0, 3, 11, 12], x[0, 5, 2, 20] = torch.nan, torch.inf
    fast, expected = with_form(network, FORMS[form], x), network(x)
    assert torch.equal(fast(x).isnan(), expected.isnan())
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_runs_in_every_mode_of_gradients(form):
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)).eval()
    x = torch.randn(1, 16, 12, 12)
    with torch.inference_mode():
        fast = with_form(network, FORMS[form], x)
        expected = network(x)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(fast(x.clone()), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_form_that_fails_is_not_taken(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(onednn_conv.OneDNNConv, "pack", fail)
    layer, x = nn.Conv2d(16, 16, 3, 2).eval(), torch.randn(1, 16, 9, 9)
    fast = accelerate(layer, x)
    torch.testing.assert_close(fast(x), layer(x), rtol=1e-5, atol=1e-5)
    assert [row.kernel for row in fast.report.rows] == ["dense_conv"]


@torch.no_grad()
def test_onednn_is_not_taken_where_numbers_are_subnormal():
    network, x = nn.Sequential(nn.Conv2d(16, 16, 3, 2), nn.ReLU()).eval(), torch.randn(1, 16, 9, 9) * 1e-38
    nn.init.zeros_(network[0].bias)
    fast = accelerate(network)
    fast.choices = Choices(forms=Always(ONEDNN))
    fast(x)
    assert [row.kernel for row in fast.report.rows] == ["dense_conv"] * 2


@torch.no_grad()
def test_the_model_runs_where_torch_is_faster(monkeypatch):
    monkeypatch.setattr(accelerated, "_SHORT_SECONDS", 1.0)
    few, x = nn.Sequential(nn.Conv2d(3, 8, 1)).eval(), torch.randn(1, 3, 128, 128)  # laid out anew, twice, for little
    many = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1, groups=32) for _ in range(6))).eval()
    left, taken, ruled = (
        accelerate(few, x),
        accelerate(many, torch.randn(1, 32, 28, 28)),
        accelerate(few, x, tune=False),
    )
    assert "torch's own operations are faster here" in left.report.left_alone[0].reason
    assert not taken.report.left_alone
    assert not ruled.report.left_alone
    for fast in (left, ruled):
        torch.testing.assert_close(fast(x), few(x), rtol=1e-5, atol=1e-5)
    few[0].weight.add_(1)
    torch.testing.assert_close(left(x), few(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_cannot_be_planned_runs_as_it_is_and_says_so(monkeypatch):
    class Failing:
        def __init__(self, *_):
            raise ArithmeticError("a fault of ours")

    monkeypatch.setattr(accelerated, "Plan", Failing)
    network, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(1, 3, 9, 9)
    with pytest.warns(UserWarning, match="a fault of ours"):
        fast = accelerate(network, x)
    for _ in range(2):
        torch.testing.assert_close(fast(x), network(x), rtol=0, atol=0)
    assert "could not be planned" in fast.report.left_alone[0].reason
