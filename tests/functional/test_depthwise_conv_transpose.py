"""depthwise_conv_transpose1d/2d/3d: against loops, as the adjoint of the plain one, and their derivatives."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import direct_sums
from separable import functional
from tolerance import tolerance

PLAIN = {1: functional.depthwise_conv1d, 2: functional.depthwise_conv2d, 3: functional.depthwise_conv3d}
CONV = {
    1: functional.depthwise_conv_transpose1d,
    2: functional.depthwise_conv_transpose2d,
    3: functional.depthwise_conv_transpose3d,
}
CASES = [  # size, kernel, stride, padding, output_padding, dilation
    ((7,), (4,), (2,), (1,), (0,), (1,)),
    ((5, 4), (3, 3), (1, 1), (1, 1), (0, 0), (1, 1)),
    ((5, 4), (4, 2), (2, 3), (1, 0), (1, 2), (1, 1)),
    ((5, 4), (3, 2), (1, 2), (2, 1), (1, 1), (2, 2)),
    ((1, 1), (3, 5), (2, 2), (0, 1), (0, 0), (1, 1)),
    ((3, 2, 4), (2, 3, 2), (2, 1, 2), (0, 1, 0), (1, 0, 0), (1, 1, 2)),
]


@pytest.mark.parametrize("spreads", [True, False], ids=["makes_m_maps", "sums_m_maps"])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_direct_sums(case, m, spreads):
    size, kernel, stride, padding, output_padding, dilation = case
    groups = 4
    x = torch.randn(2, groups if spreads else groups * m, *size, dtype=torch.float64)
    weight = torch.randn(groups, m, *kernel, dtype=torch.float64)
    bias = torch.randn(groups * m if spreads else groups, dtype=torch.float64)
    expected = direct_sums.depthwise_transpose(x, weight, bias, stride, padding, output_padding, dilation)
    actual = CONV[len(size)](x, weight, bias, stride, padding, output_padding, dilation)
    taps = m * torch.Size(kernel).numel()
    torch.testing.assert_close(actual, expected, **tolerance(torch.float64, taps))
    low = CONV[len(size)](x.float(), weight.float(), bias.float(), stride, padding, output_padding, dilation)
    torch.testing.assert_close(low.double(), expected, **tolerance(torch.float32, taps))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_is_the_adjoint_of_the_plain_convolution(dims):
    x = torch.randn(2, 6, *(9, 8, 7)[:dims], dtype=torch.float64)
    weight = torch.randn(12, 1, *(3,) * dims, dtype=torch.float64)  # [C*m, 1, k...], m = 2
    y = PLAIN[dims](x, weight, stride=2, padding=1)
    g = torch.randn_like(y)
    extra = [(n + 2 - 3) % 2 for n in x.shape[2:]]
    back = CONV[dims](g, weight.view(6, 2, *weight.shape[2:]), stride=2, padding=1, output_padding=extra)
    torch.testing.assert_close((y * g).sum(), (x * back).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spreads", [True, False], ids=["makes_m_maps", "sums_m_maps"])
def test_first_and_second_derivatives_are_finite_differences(spreads):
    x = torch.randn(1, 2 if spreads else 4, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4 if spreads else 2, dtype=torch.float64, requires_grad=True)

    def f(x, weight, bias):
        return functional.depthwise_conv_transpose2d(
            x, weight, bias, stride=2, padding=1, output_padding=1, activation="silu"
        )

    assert gradcheck(f, (x, weight, bias), check_forward_ad=True)
    assert gradgradcheck(f, (x, weight, bias))


def test_compiles_whole():
    x, weight = torch.randn(2, 4, 5, 6), torch.randn(4, 2, 4, 4)

    def f(x, weight):
        return functional.depthwise_conv_transpose2d(x, weight, stride=2, padding=1, activation="relu")

    torch._dynamo.reset()
    torch.testing.assert_close(
        torch.compile(f, fullgraph=True, backend="aot_eager")(x, weight), f(x, weight), **tolerance(torch.float32, 16)
    )
