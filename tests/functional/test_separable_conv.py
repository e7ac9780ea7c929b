"""separable_conv1d/2d/3d: both orders, against loops, derivatives, and the dense convolution that they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import cases
import direct_sums
from separable import functional
from tolerance import tolerance

CONV = {1: functional.separable_conv1d, 2: functional.separable_conv2d, 3: functional.separable_conv3d}
ORDERS = ("depthwise_first", "pointwise_first")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", [c for c in cases.DEPTHWISE if c.name not in ("long", "thirty_one")], ids=str)
def test_equals_direct_sums(case, order):
    x, (dw, pw, dw_bias, pw_bias) = case.input(), case.separable(order)
    expected = direct_sums.separable(case, x, (dw, pw), (dw_bias, pw_bias), order)
    actual = CONV[case.dims](x, dw, pw, dw_bias, pw_bias, **case.options, order=order)
    products = case.taps * case.multiplier * case.channels
    torch.testing.assert_close(actual, expected, **tolerance(torch.float64, products))
    halves = [t.float() for t in (x, dw, pw, dw_bias, pw_bias)]
    low = CONV[case.dims](*halves, **case.options, order=order)
    torch.testing.assert_close(low.double(), expected, **tolerance(torch.float32, products))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("inner", "last"), [("relu6", None), (None, "silu"), ("gelu", "hard_swish")])
def test_activations_stand_between_and_after_the_halves(order, inner, last):
    case = cases.DEPTHWISE[0]
    x, (dw, pw, dw_bias, pw_bias) = case.input(), case.separable(order)
    expected = direct_sums.separable(case, x, (dw, pw), (dw_bias, pw_bias), order, inner, last)
    actual = functional.separable_conv2d(
        x, dw, pw, dw_bias, pw_bias, **case.options, order=order, inner_activation=inner, activation=last
    )
    torch.testing.assert_close(actual, expected, **tolerance(torch.float64, case.taps * case.channels))


@pytest.mark.parametrize("order", ORDERS)
def test_without_activations_is_one_dense_convolution(order):
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    if order == "depthwise_first":
        dw, pw = torch.randn(12, 1, 3, 3, dtype=torch.float64), torch.randn(4, 12, 1, 1, dtype=torch.float64)
        dense = torch.einsum("ocr,crhw->ochw", pw.view(4, 6, 2), dw.view(6, 2, 3, 3))
    else:
        dw, pw = torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.randn(8, 6, 1, 1, dtype=torch.float64)
        dense = torch.einsum("orc,orhw->ochw", pw.view(4, 2, 6), dw)
    actual = functional.separable_conv2d(x, dw, pw, stride=2, padding=1, order=order)
    torch.testing.assert_close(actual, F.conv2d(x, dense, stride=2, padding=1), **tolerance(torch.float64, 9 * 12))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_first_and_second_derivatives_are_finite_differences(dims, order):
    case = cases.Case("small", 1, 2, 2, 3, (4,) * dims, (2,) * dims, {"padding": "same", "stride": 2})
    tensors = [t.requires_grad_() for t in (case.input(), *case.separable(order))]

    def f(*tensors):
        return CONV[dims](*tensors, **case.options, order=order, inner_activation="silu", activation="gelu")

    assert gradcheck(f, tensors, check_forward_ad=True)
    assert gradgradcheck(f, tensors)


@pytest.mark.parametrize("order", ORDERS)
def test_vmap_over_ensembles_agrees_with_a_loop(order):
    case = cases.Case("small", 2, 4, 2, 6, (6, 5), (3, 3), {"padding": 1, "stride": 2})
    members = [(case.input(), *case.separable(order)) for _ in range(3)]

    def f(*tensors):
        return functional.separable_conv2d(*tensors, **case.options, order=order, activation="relu")

    stacked = [torch.stack(t) for t in zip(*members, strict=True)]
    looped = torch.stack([f(*m) for m in members])
    torch.testing.assert_close(torch.vmap(f)(*stacked), looped, **tolerance(torch.float64, 9 * 8))


@pytest.mark.parametrize("order", ORDERS)
def test_compiles_whole(order):
    case = cases.DEPTHWISE[0]
    tensors = (case.input(torch.float32), *case.separable(order, torch.float32))

    def f(*tensors):
        return functional.separable_conv2d(*tensors, padding="same", stride=2, order=order, inner_activation="relu6")

    torch._dynamo.reset()
    torch.testing.assert_close(
        torch.compile(f, fullgraph=True, backend="aot_eager")(*tensors), f(*tensors), **tolerance(torch.float32, 9 * 16)
    )
