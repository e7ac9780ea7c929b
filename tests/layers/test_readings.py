"""The three readings of "depthwise separable": what each computes, and its cost against counts made by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from separable import GatedSeparableConv2d, InputError, SeparableConv2d, StackedConv2d, cost
from tolerance import tolerance

SHAPES = [(64, 64, 3, 16), (8, 24, 5, 9), (16, 4, 3, 7)]  # C_in, C_out, k, H = W


def by_hand(c_in: int, c_out: int, k: int, side: int) -> dict[str, tuple[int, int]]:
    """(multiply-adds of the convolutions, weights) of each reading, as docs/what-is-separable.md derives them."""
    weights = {
        "dense": k * k * c_in * c_out,
        "stacked": k * k * c_out * (c_in + c_out),
        "gated": k * k * c_in + c_in * c_out + k * k * c_out,
        "separable": c_in * (k * k + c_out),
    }
    return {name: (side * side * count, count) for name, count in weights.items()}


def layers(c_in: int, c_out: int, k: int) -> dict[str, nn.Module]:
    return {
        "dense": nn.Conv2d(c_in, c_out, k, padding=k // 2, bias=False),
        "stacked": StackedConv2d(c_in, c_out, k, bias=False),
        "gated": GatedSeparableConv2d(c_in, c_out, k, bias=False),
        "separable": SeparableConv2d(c_in, c_out, k, padding="same", bias=False),
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["dense", "stacked", "gated", "separable"])
def test_costs_what_its_formula_says(name, shape):
    c_in, c_out, k, side = shape
    layer, x = layers(c_in, c_out, k)[name], torch.randn(1, c_in, side, side)
    macs, weights = by_hand(*shape)[name]
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * macs
    counted = cost.count(layer, x)
    assert counted.macs == macs
    assert counted.params == weights == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_saving_is_one_over_c_out_plus_one_over_k_squared_not_one_over_c(shape):
    c_in, c_out, k, _ = shape
    costs = by_hand(*shape)
    ratio = costs["separable"][0] / costs["dense"][0]
    assert ratio == pytest.approx(1 / c_out + 1 / k**2)
    assert ratio > max(1 / c_out, 1 / k**2), "1/C alone is never reached, and no number of channels goes below 1/k²"
    assert costs["stacked"][0] / costs["dense"][0] == pytest.approx(1 + c_out / c_in)
    gated = costs["gated"][0] / costs["dense"][0]
    assert gated == pytest.approx(1 / c_out + 1 / k**2 + 1 / c_in)


def test_stacked_is_two_dense_convolutions():
    layer, x = StackedConv2d(3, 5, 3), torch.randn(2, 3, 7, 6)
    expected = nn.functional.conv2d(x, layer.conv1.weight, layer.conv1.bias, padding=1)
    expected = nn.functional.conv2d(expected, layer.conv2.weight, layer.conv2.bias, padding=1)
    torch.testing.assert_close(layer(x), expected, **tolerance(torch.float32, 45))


def test_gated_multiplies_the_mixed_maps_by_their_own_filtering():
    layer, x = GatedSeparableConv2d(3, 5, 3), torch.randn(2, 3, 7, 6)
    u = nn.functional.conv2d(x, layer.conv_dw.weight, padding=1, groups=3)
    u = nn.functional.conv2d(u, layer.conv_pw.weight, layer.conv_pw.bias)
    gate = nn.functional.conv2d(u, layer.conv_spatial.weight, layer.conv_spatial.bias, padding=1, groups=5)
    torch.testing.assert_close(layer(x), u * gate, **tolerance(torch.float32, 45))


def test_gated_is_quadratic_in_its_input_so_it_is_no_convolution():
    layer, x = GatedSeparableConv2d(3, 5, 3, bias=False).double(), torch.randn(1, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(2 * x), 4 * layer(x))


@pytest.mark.parametrize("kind", [StackedConv2d, GatedSeparableConv2d])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 4, 3), "in_channels = 0: must be a whole number of at least 1"),
        ((4, 4, "3"), "kernel_size = '3': must be one int or 2 ints, one for each spatial dimension"),
    ],
)
def test_refuses_in_one_sentence(kind, arguments, sentence):
    with pytest.raises(InputError) as caught:
        kind(*arguments)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("kind", [StackedConv2d, GatedSeparableConv2d])
def test_compiles_whole(kind):
    layer, x = kind(3, 5, 3), torch.randn(2, 3, 7, 6)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), **tolerance(torch.float32, 90))
