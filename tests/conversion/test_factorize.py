"""The closed form is exact at full rank, nearest below it, and says what it cannot separate."""

import pytest
import torch
from torch import nn

from separable.conversion import factorize
from separable.conversion.factorize import full_rank
from separable.conversion.moments import unfold
from separable.errors import InputError

CASES = {
    "plain": (nn.Conv2d, (6, 10, 3), {"padding": 1}),
    "stride": (nn.Conv2d, (6, 10, 3), {"stride": 2, "padding": 1}),
    "unequal stride and padding": (nn.Conv2d, (4, 5, (3, 5)), {"stride": (2, 1), "padding": (0, 2)}),
    "dilation": (nn.Conv2d, (4, 7, 3), {"dilation": (2, 3), "padding": 2}),
    "same, even kernel": (nn.Conv2d, (4, 7, (2, 4)), {"padding": "same"}),
    "valid": (nn.Conv2d, (4, 7, 3), {"padding": "valid"}),
    "reflect": (nn.Conv2d, (4, 7, 3), {"padding": 1, "padding_mode": "reflect"}),
    "circular": (nn.Conv2d, (4, 7, 5), {"padding": 2, "padding_mode": "circular"}),
    "no bias": (nn.Conv2d, (4, 7, 3), {"bias": False}),
    "fewer outputs than taps": (nn.Conv2d, (9, 2, 3), {"padding": 1}),
    "one channel in": (nn.Conv2d, (1, 8, 3), {"padding": 1}),
    "1-D": (nn.Conv1d, (5, 9, 7), {"stride": 2, "padding": 3}),
    "1-D dilated, same": (nn.Conv1d, (5, 9, 4), {"dilation": 3, "padding": "same"}),
    "3-D": (nn.Conv3d, (3, 5, (2, 3, 3)), {"stride": (1, 2, 1), "padding": (0, 1, 1)}),
}


def example(conv, channels):
    return torch.randn(2, channels, *([13, 12, 9][: len(conv.kernel_size)]), dtype=torch.float64)


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
@pytest.mark.parametrize("case", CASES)
def test_is_exact_at_full_rank(case, order):
    torch.manual_seed(0)
    kind, sizes, options = CASES[case]
    conv = kind(*sizes, **options, dtype=torch.float64)
    x = example(conv, sizes[0])
    separable = factorize(conv, order)
    torch.testing.assert_close(separable(x), conv(x), rtol=1e-10, atol=1e-10)
    assert separable.order == order
    assert separable.depth_multiplier == full_rank(conv, order)


@pytest.mark.parametrize("case", CASES)
def test_patches_reproduce_the_convolution(case):
    kind, sizes, options = CASES[case]
    conv = kind(*sizes, **options, dtype=torch.float64)
    x = example(conv, sizes[0])
    windows = unfold(conv, x)  # [N, out..., C, k...]
    y = windows.flatten(-1 - len(conv.kernel_size)) @ conv.weight.flatten(1).T
    y = y if conv.bias is None else y + conv.bias
    torch.testing.assert_close(y.movedim(-1, 1), conv(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_weight_error_is_the_energy_of_the_singular_values_left_out(order):
    torch.manual_seed(1)
    conv = nn.Conv2d(5, 7, 3, bias=False, dtype=torch.float64)
    layer = factorize(conv, order, rank=2)
    dw, pw = layer.conv_dw.weight.flatten(2), layer.conv_pw.weight.flatten(1)
    if order == "depthwise_first":
        weight = torch.einsum("ocj,cjk->ock", pw.view(7, 5, 2), dw.view(5, 2, 9))
        stack = conv.weight.flatten(2).transpose(0, 1)
    else:
        weight = torch.einsum("ojc,ojk->ock", pw.view(7, 2, 5), dw.view(7, 2, 9))
        stack = conv.weight.flatten(2)
    left_out = torch.linalg.svdvals(stack)[:, 2:].square().sum()
    torch.testing.assert_close((weight - conv.weight.flatten(2)).square().sum(), left_out)


def test_keeps_dtype_mode_and_requires_grad():
    conv = nn.Conv2d(4, 6, 3, dtype=torch.bfloat16).eval().requires_grad_(False)
    layer = factorize(conv, rank=2)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert not layer.training
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "depthwise already"),
        (nn.Conv2d(8, 8, 3, groups=2), "2 groups"),
        (nn.Conv2d(8, 8, 1), "pointwise"),
        (nn.ConvTranspose2d(8, 8, 3), "ConvTranspose2d"),
        (nn.Linear(8, 8), "Linear"),
    ],
)
def test_refuses_what_cannot_be_separated_with_the_reason(layer, reason):
    with pytest.raises(InputError, match=reason):
        factorize(layer)


@pytest.mark.parametrize("rank", [0, 10, 2.0, True])
def test_refuses_a_rank_outside_its_range(rank):
    with pytest.raises(InputError, match="from 1 to 9"):
        factorize(nn.Conv2d(4, 16, 3), rank=rank)
