"""depthwise_conv1d/2d/3d: what they compute, for every case of the grid, dtype, layout and kind of derivative."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import cases
import direct_sums
from separable import functional
from separable.functional.arguments import ACTIVATIONS
from tolerance import tolerance

CONV = {1: functional.depthwise_conv1d, 2: functional.depthwise_conv2d, 3: functional.depthwise_conv3d}


@pytest.mark.parametrize("case", cases.DEPTHWISE, ids=str)
def test_equals_direct_sums(case):
    x, (weight, bias) = case.input(), case.depthwise()
    expected = direct_sums.of_case(case, x, weight, bias)
    kept = x.clone(), weight.clone(), bias.clone()
    actual = CONV[case.dims](x, weight, bias, **case.options)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float64, case.taps))
    for dtype in (torch.float32, torch.bfloat16):
        low = CONV[case.dims](x.to(dtype), weight.to(dtype), bias.to(dtype), **case.options)
        exact = CONV[case.dims](
            x.to(dtype).double(), weight.to(dtype).double(), bias.to(dtype).double(), **case.options
        )
        assert low.dtype == dtype
        torch.testing.assert_close(low.double(), exact, **tolerance(dtype, case.taps))
    for before, after in zip(kept, (x, weight, bias), strict=True):
        assert torch.equal(before, after), "an argument was written to"


@pytest.mark.parametrize("case", [c for c in cases.DEPTHWISE if c.multiplier > 1 or c.name == "causal"], ids=str)
def test_sums_m_filtered_channels_into_each_output(case):
    m = max(case.multiplier, 2)
    x = torch.randn(case.batch, case.channels * m, *case.size, dtype=torch.float64)
    weight = torch.randn(case.channels, m, *case.kernel, dtype=torch.float64)
    actual = CONV[case.dims](x, weight, **case.options)
    torch.testing.assert_close(
        actual, direct_sums.of_case(case, x, weight, None), **tolerance(torch.float64, m * case.taps)
    )


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_applies_the_activation_to_the_result(activation):
    case = cases.DEPTHWISE[0]
    x, (weight, bias) = case.input(), case.depthwise()
    expected = direct_sums.ACTIVATIONS[activation](direct_sums.of_case(case, x, weight, bias))
    actual = functional.depthwise_conv2d(x, weight, bias, **case.options, activation=activation)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float64, case.taps))


def test_reference_is_a_way_of_its_own_with_the_same_result():
    case = cases.DEPTHWISE[0]
    x, (weight, bias) = case.input(torch.float32), case.depthwise(torch.float32)
    auto = functional.depthwise_conv2d(x, weight, bias, **case.options)
    reference = functional.depthwise_conv2d(x, weight, bias, **case.options, impl="reference")
    torch.testing.assert_close(auto, reference, **tolerance(torch.float32, case.taps))


@pytest.mark.parametrize("name", cases.layouts(torch.zeros(1, 1, 1, 1)))
def test_any_layout_gives_the_same_values_and_gradients(name):
    x = torch.randn(2, 16, 9, 9, dtype=torch.float64)
    weight = torch.randn(16, 1, 3, 3, dtype=torch.float64)
    laid_out = cases.layouts(x)[name].detach().requires_grad_()
    plain = laid_out.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    actual = functional.depthwise_conv2d(laid_out, weight, padding=1)
    expected = functional.depthwise_conv2d(plain, weight, padding=1)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float64, 9))
    probe = torch.randn_like(expected)
    actual.backward(probe)
    expected.backward(probe)
    torch.testing.assert_close(laid_out.grad, plain.grad, **tolerance(torch.float64, 9))


@pytest.mark.parametrize("padding", [1, "same", ((1, 0), (0, 1))], ids=str)
def test_channels_last_stays_channels_last(padding):
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    y = functional.depthwise_conv2d(x, torch.randn(8, 1, 3, 3), padding=padding)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("places", [12, 13])  # a multiple of the dilation is computed as an image of columns
def test_a_dilated_sequence_whose_channels_lie_together_equals_direct_sums(places):
    torch.manual_seed(1)
    x = torch.randn(2, places, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, 3, dtype=torch.float64, requires_grad=True)
    y = functional.depthwise_conv1d(x.transpose(1, 2), weight, padding=4, dilation=4)
    beside = torch.nn.functional.pad(x, (0, 0, 4, 4))  # [2, places + 8, 6]
    expected = sum(beside[:, 4 * n : 4 * n + places] * weight[:, 0, n] for n in range(3)).transpose(1, 2)
    torch.testing.assert_close(y, expected, **tolerance(torch.float64, 3))
    pairs = zip(*(torch.autograd.grad(z.square().sum(), (x, weight)) for z in (y, expected)), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, **tolerance(torch.float64, 3))


GRADIENT_CASES = [
    c
    for c in cases.SMALL
    if c.name in ("multiplier_2", "stride_and_dilation", "even_kernel_same_stride_2", "asymmetric", "one_pixel")
] + [cases.Case("causal_small", 2, 3, 2, 4, (7,), (3,), {"padding": "causal", "dilation": 2})]


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_first_and_second_derivatives_are_finite_differences(case):
    channels = min(case.channels, 3)
    size = tuple(min(n, 6) for n in case.size)
    x = torch.randn(case.batch, channels, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels * case.multiplier, 1, *case.kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(channels * case.multiplier, dtype=torch.float64, requires_grad=True)

    def f(x, weight, bias):
        return CONV[case.dims](x, weight, bias, **case.options, activation="silu")

    assert gradcheck(f, (x, weight, bias), check_forward_ad=True)
    assert gradgradcheck(f, (x, weight, bias), nondet_tol=1e-10)


def test_forward_mode_and_vmap_agree_with_a_loop():
    x, weight = torch.randn(3, 2, 4, 6, 6, dtype=torch.float64), torch.randn(3, 8, 1, 3, 3, dtype=torch.float64)

    def f(x, weight):
        return functional.depthwise_conv2d(x, weight, padding="same", stride=2, activation="gelu")

    looped = torch.stack([f(a, b) for a, b in zip(x, weight, strict=True)])
    torch.testing.assert_close(torch.vmap(f)(x, weight), looped, **tolerance(torch.float64, 9))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x[0], x[1]), weight[0])).tangent
    _, expected = torch.autograd.functional.jvp(lambda a: f(a, weight[0]), x[0], x[1])
    torch.testing.assert_close(tangent, expected, **tolerance(torch.float64, 9))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_exactly_the_outputs_that_see_them(bad):
    x = torch.randn(1, 2, 7, 7)
    x[0, 0, 3, 3] = bad
    y = functional.depthwise_conv2d(x, torch.ones(2, 1, 3, 3), padding=1)
    seen = torch.zeros(1, 2, 7, 7, dtype=torch.bool)
    seen[0, 0, 2:5, 2:5] = True
    assert torch.equal(~torch.isfinite(y), seen)


def test_batch_0_and_its_gradient_pass_through():
    x, weight = torch.randn(0, 8, 8, 8, requires_grad=True), torch.randn(8, 1, 3, 3, requires_grad=True)
    y = functional.depthwise_conv2d(x, weight, padding=1)
    y.sum().backward()
    assert y.shape == (0, 8, 8, 8)
    assert x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_meta_tensors_give_shapes_without_arithmetic():
    y = functional.depthwise_conv3d(
        torch.empty(2, 4, 6, 7, 8, device="meta"), torch.empty(8, 1, 3, 3, 3, device="meta"), padding="same", stride=2
    )
    assert y.device.type == "meta"
    assert y.shape == (2, 8, 3, 4, 4)


def test_autocast_brings_mixed_dtypes_together():
    x, weight = torch.randn(1, 4, 6, 6, dtype=torch.bfloat16), torch.randn(4, 1, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional.depthwise_conv2d(x, weight).dtype == torch.bfloat16


def test_compiles_whole_and_for_any_size():
    def f(x, weight):
        return functional.depthwise_conv2d(x, weight, padding="same", stride=2, activation="hard_swish")

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    weight = torch.randn(4, 1, 3, 3)
    for size in ((1, 4, 7, 8), (2, 4, 8, 9), (3, 4, 12, 12)):
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x, weight), f(x, weight), **tolerance(torch.float32, 9))
