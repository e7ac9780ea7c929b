"""batch_norm with its activation is torch's in float64: values, statistics, derivatives, on each instruction set."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from tests.tolerance import tolerance
from torch.autograd import gradcheck, gradgradcheck

from separable import _native
from separable.errors import InputError
from separable.functional import batch_norm
from separable.functional.arguments import ACTIVATIONS

native = pytest.mark.skipif(bool(_native.missing), reason=f"no native kernels: {_native.missing}")
SHAPES = [
    (2, 1, 3, 3),
    (4, 15, 3, 5),
    (3, 16, 7, 7),
    (5, 17, 2, 2),
    (2, 40, 33, 17),
    (300, 96),
    (3, 24, 50),
    (1, 20, 3, 4, 5),
]


def last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def step(x, weight, bias, grad, impl, activation, dtype):
    """y, the gradients of input, weight and bias, and the running statistics after one step."""
    leaves = [t.detach().to(dtype).clone().requires_grad_() for t in (x, weight, bias)]
    running = [torch.zeros(x.shape[1], dtype=dtype), torch.ones(x.shape[1], dtype=dtype)]
    y = batch_norm(leaves[0], *running, *leaves[1:], True, 0.3, 1e-3, activation=activation, impl=impl)
    y.backward(grad.to(dtype))
    return [y.detach(), *(t.grad for t in leaves), *running]


@native
@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_torch_in_float64(shape, isa):
    torch.manual_seed(0)
    x, grad = last(torch.randn(shape) * 2 + 5), last(torch.randn(shape))
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    for activation in (None, *ACTIVATIONS):
        with _native.force(isa):
            actual = step(x, weight, bias, grad, "native", activation, torch.float32)
        expected = step(x, weight, bias, grad, "reference", activation, torch.float64)
        count = x.numel() // shape[1]
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.double(), e, **tolerance(torch.float32, taps=count))


@native
def test_statistics_do_not_lose_digits_where_the_mean_is_far_from_zero():
    x = last(torch.randn(64, 24, 16, 16) + 1000)
    y = batch_norm(x, None, None, training=True, impl="native")
    exact = F.batch_norm(x.double(), None, None, training=True)
    assert (y.double() - exact).abs().max() < 1e-3


@native
@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hard_swish", "gelu"])
def test_passes_nan_on_and_takes_corners_as_torch_does(activation):
    x = torch.tensor([[-1.0], [1.0], [0.0], [0.0]]).repeat(1, 16)
    for weight, bias in ((1.0, 0.0), (1.0, 6.0), (3.0, -3.0)):  # z = 0, 6 and -3 at the corners
        affine = torch.full((16,), weight), torch.full((16,), bias)
        grad = torch.randn(4, 16)
        actual, expected = (step(x, *affine, grad, impl, activation, torch.float32) for impl in ("native", "reference"))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
    x[0, 3] = float("nan")
    y = batch_norm(x, None, None, training=True, activation=activation, impl="native")
    assert y[:, 3].isnan().all()
    assert not y[:, 4].isnan().any()


@native
def test_gives_the_same_bits_on_one_thread_and_two():
    x, grad = last(torch.randn(8, 40, 60, 60)), torch.randn(8, 40, 60, 60)
    weight, bias, threads, results = torch.rand(40), torch.randn(40), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(step(x, weight, bias, grad, "native", "relu6", torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@native
def test_second_derivatives_are_those_of_torch():
    x, weight, bias = last(torch.randn(4, 6, 3, 3)), torch.rand(6) + 0.5, torch.randn(6)
    found = {}
    for impl, dtype in (("native", torch.float32), ("reference", torch.float64)):
        leaves = [t.detach().to(dtype).clone().requires_grad_() for t in (x, weight, bias)]
        y = batch_norm(leaves[0], None, None, *leaves[1:], True, activation="silu", impl=impl)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        found[impl] = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    for a, e in zip(found["native"], found["reference"], strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-3, atol=1e-3)


def test_derivatives_are_finite_differences():
    leaves = [t.double().requires_grad_() for t in (torch.randn(3, 4, 2, 2), torch.rand(4), torch.randn(4))]

    def f(x, weight, bias):
        return batch_norm(x, None, None, weight, bias, True, activation="silu")

    assert gradcheck(f, leaves)
    assert gradgradcheck(f, leaves)


@native
def test_keeps_its_input_alone_for_backward():
    kept: list[int] = []
    x = last(torch.randn(8, 32, 14, 14)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        batch_norm(x, None, None, torch.ones(32, requires_grad=True), None, True, activation="relu6", impl="native")
    assert sorted(kept)[-2:] == [32, x.numel()]


@pytest.fixture
def took(monkeypatch):
    """The shapes that went the native way, which gives back its input here."""
    module, shapes = importlib.import_module("separable.functional.batch_norm"), []
    monkeypatch.setattr(module, "_native_norm", lambda input, *rest: shapes.append(tuple(input.shape)) or input)
    return shapes


@native
def test_auto_is_native_in_training_on_channels_last_memory_only(took):
    x, statistics = torch.randn(16, 32, 32, 32), (torch.zeros(32), torch.ones(32))
    batch_norm(last(x), *statistics, training=True, activation="relu")
    batch_norm(x, *statistics, training=True, activation="relu")
    batch_norm(last(x), *statistics, activation="relu")
    assert took == [x.shape]


@native
def test_auto_leaves_small_inputs_to_torch(took):
    lost = [(128, 960, 1, 1), (128, 960, 2, 2), (16, 960, 4, 4), (16, 320, 7, 7), (16, 960, 7, 7), (128, 320, 4, 4)]
    for shape in (*lost, (128, 960), (16, 16, 20)):
        batch_norm(last(torch.randn(shape)), None, None, training=True)
    for shape in ((128, 960, 1, 1), (16, 320, 4, 4), (16, 64, 8, 8), (16, 16, 20)):
        batch_norm(last(torch.randn(shape)), None, None, training=True, activation="relu")
    assert not took
    won = [((128, 320, 7, 7), None), ((128, 960, 2, 2), "relu"), ((16, 64, 28, 28), "relu"), ((16, 64, 50), None)]
    for shape, activation in won:
        batch_norm(last(torch.randn(shape)), None, None, training=True, activation=activation)
    assert took == [shape for shape, _ in won]


@native
def test_operators_are_registered_as_torch_wants_them():
    x, weight, bias = last(torch.randn(4, 8, 3, 3)), torch.rand(8), torch.randn(8)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(torch.ops.separable.batch_norm.default, (*leaves, 1e-5, 1))
    torch.library.opcheck(torch.ops.separable.batch_norm.default, (x, None, None, 1e-5, 2))
    statistics = torch.zeros(8), torch.ones(8)
    torch.library.opcheck(torch.ops.separable.batch_norm_backward.default, (x, x, weight, bias, *statistics, 1e-5, 1))


def test_refuses_what_it_cannot_compute_with_the_reason():
    x = torch.randn(4, 8, 3, 3)
    with pytest.raises(InputError, match="activation"):
        batch_norm(x, None, None, training=True, activation="tanh")
    with pytest.raises(InputError, match="training"):
        batch_norm(x, torch.zeros(8), torch.ones(8), impl="native")
    if not _native.missing:
        with pytest.raises(InputError, match="float32"):
            batch_norm(x.double(), None, None, training=True, impl="native")


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
def test_numbers_that_do_not_fit_the_channels_are_refused(name):
    numbers = {key: torch.ones(8) for key in ("running_mean", "running_var", "weight", "bias")} | {name: torch.ones(7)}
    with pytest.raises(InputError, match=rf"{name} = tensor of shape \[7\]: must be \[8\]"):
        batch_norm(torch.randn(2, 8, 4, 4), **numbers)
