"""recompute=True: the numbers of the whole graph with the input alone kept, natively and through torch's checkpoint."""

import pytest
import torch
from tests import cases
from tests.tolerance import tolerance
from torch.autograd import gradcheck, gradgradcheck

from separable import _native
from separable.functional import separable_conv1d, separable_conv2d, separable_conv3d
from separable.functional.arguments import ACTIVATIONS

native = pytest.mark.skipif(bool(_native.missing), reason=f"no native kernels: {_native.missing}")
CONV = {1: separable_conv1d, 2: separable_conv2d, 3: separable_conv3d}
ORDERS = ("depthwise_first", "pointwise_first")
SINGLE = [case for case in cases.DEPTHWISE if case.multiplier == 1 and case.dims < 3]
PLAIN = next(case for case in SINGLE if case.name == "plain")


def step(case, order, dtype, **more):
    """The value and all gradients of one backward, the output's gradient drawn from a fixed seed."""
    torch.manual_seed(0)
    tensors = [t.detach().to(dtype).clone().requires_grad_() for t in (case.input(), *case.separable(order))]
    y = CONV[case.dims](*tensors, **case.options, order=order, **more)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, grad)]


@native
@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_matches_the_reference_in_float64(case, order, isa):
    with _native.force(isa):
        actual = step(case, order, torch.float32, inner_activation="silu", recompute=True, impl="native")
    expected = step(case, order, torch.float64, inner_activation="silu", impl="reference")
    places = expected[0].numel() // expected[0].shape[1]
    terms = case.taps * (case.channels + places)  # of the longest sums: one half's over the other's
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, **tolerance(torch.float32, taps=max(terms, 1)))


@native
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("inner", [None, *ACTIVATIONS])
def test_goes_through_every_activation(inner, order):
    more = {"inner_activation": inner, "activation": inner, "recompute": True}
    actual = step(PLAIN, order, torch.float32, **more, impl="native")
    expected = step(PLAIN, order, torch.float64, **more, impl="reference")
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, **tolerance(torch.float32, taps=9 * (16 + 2 * 14 * 14)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_reference_gives_the_same_bits_with_and_without(dims, order):
    case = next(case for case in cases.DEPTHWISE if case.dims == dims and case.multiplier <= 2)
    more = {"inner_activation": "gelu", "impl": "reference"}
    kept, recomputed = (step(case, order, torch.float64, **more, recompute=r) for r in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_first_and_second_derivatives_are_finite_differences(order):
    case = cases.Case("small", 1, 2, 1, 3, (4, 4), (2, 2), {"padding": "same", "stride": 2})
    tensors = [t.requires_grad_() for t in (case.input(), *case.separable(order))]

    def f(*tensors):
        return separable_conv2d(*tensors, **case.options, order=order, inner_activation="silu", recompute=True)

    assert gradcheck(f, tensors)
    assert gradgradcheck(f, tensors)


@native
@pytest.mark.parametrize("order", ORDERS)
def test_second_derivatives_of_the_native_form_are_the_reference_s(order):
    found = []
    for dtype, impl in ((torch.float32, "native"), (torch.float64, "reference")):
        torch.manual_seed(0)
        tensors = [t.detach().to(dtype).requires_grad_() for t in (PLAIN.input(), *PLAIN.separable(order))]
        y = separable_conv2d(*tensors, padding=1, order=order, inner_activation="gelu", recompute=True, impl=impl)
        first = torch.autograd.grad(y.square().mean(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), tensors))
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-3, atol=1e-3 * float(e.abs().max()))


def kept_bytes(impl: str, recompute: bool) -> int:
    """What autograd keeps of one layer 2 x 16 x 32 x 32 in distinct memory, without the weights."""
    x = torch.randn(2, 16, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    dw, pw = torch.randn(16, 1, 3, 3, requires_grad=True), torch.randn(24, 16, 1, 1, requires_grad=True)
    memory: dict[int, int] = {}

    def pack(t):
        memory[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = separable_conv2d(x, dw, pw, padding=1, inner_activation="relu", recompute=recompute, impl=impl)
    del y
    return sum(memory.values()) - sum(memory.get(t.data_ptr(), 0) for t in (dw, pw))


def test_autograd_keeps_the_input_alone():
    maps = 4 * 2 * 16 * 32 * 32
    assert kept_bytes("reference", False) == 2 * maps  # the input, and the filtered maps
    if not _native.missing:
        assert kept_bytes("native", True) == maps


@native
@pytest.mark.parametrize("order", ORDERS)
def test_gives_the_same_bits_on_one_thread_and_two(order):
    case = cases.Case("large", 9, 24, 1, 40, (30, 31), (3, 3), {"padding": 1})
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(step(case, order, torch.float32, inner_activation="relu", recompute=True, impl="native"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@native
def test_leaves_out_the_gradients_nobody_asks_for():
    x, dw, pw = torch.randn(2, 8, 6, 6), torch.randn(8, 1, 3, 3), torch.randn(4, 8, 1, 1, requires_grad=True)
    separable_conv2d(x, dw, pw, padding=1, recompute=True, impl="native").sum().backward()
    assert (x.grad, dw.grad) == (None, None)
    expected = separable_conv2d(x, dw, pw, padding=1, impl="reference").sum()
    torch.testing.assert_close(pw.grad, torch.autograd.grad(expected, pw)[0])


@native
def test_operators_are_registered_as_torch_wants_them():
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    for first in (False, True):
        dw, pw = torch.randn(4 if first else 8, 1, 3, 3), torch.randn(4, 8, 1, 1)
        how = ([1, 1], [1, 1, 1, 1], [1, 1], first, 2)
        leaves = [t.clone().requires_grad_() for t in (x, dw, pw, torch.randn(dw.shape[0]), torch.randn(4))]
        torch.library.opcheck(torch.ops.separable.separable_conv.default, (*leaves, *how))
        grad = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
        arguments = (grad, *(t.detach() for t in leaves), *how, True)
        torch.library.opcheck(torch.ops.separable.separable_conv_backward.default, arguments)


@pytest.mark.parametrize("recompute", [False, True])
def test_exports_standard_operators_and_runs_under_functorch_and_autocast(recompute):
    dw, pw = torch.randn(8, 1, 3, 3, requires_grad=True), torch.randn(4, 8, 1, 1)

    class Net(torch.nn.Module):
        def forward(self, x):
            return separable_conv2d(x, dw, pw, padding=1, recompute=recompute)

    x = torch.randn(3, 8, 6, 6).to(memory_format=torch.channels_last)
    graph = torch.export.export(Net(), (x,)).graph
    assert not any("separable" in str(n.target) or "checkpoint" in str(n.target) for n in graph.nodes)
    each = torch.vmap(lambda x: Net()(x[None])[0])(x)
    torch.testing.assert_close(each, Net()(x), **tolerance(torch.float32, taps=72))
    with torch.autocast("cpu"):
        y = Net()(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert dw.grad.abs().sum() > 0
