"""Layers under torch.compile, torch.export, autocast, channels_last, bfloat16 and the meta device."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from separable import DepthwiseConv1d, DepthwiseConv2d, SeparableConv1d, SeparableConv2d, SeparableConvTranspose2d
from tolerance import tolerance

ORDERS = ("depthwise_first", "pointwise_first")
PADDINGS = [
    {"padding": 1},
    {"padding": "valid"},
    {"padding": ((1, 0), (2, 1))},
    {"padding": "same"},
    {"padding": "same", "stride": 2},
    {"padding": "same", "kernel_size": (2, 4), "stride": 2},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "reflect"},
]


def separable_conv(order, **options):
    options = {"kernel_size": 3, "inner_activation": "relu6", "activation": "hard_swish", **options}
    return SeparableConv2d(4, 6, order=order, depth_multiplier=2, **options)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", PADDINGS, ids=str)
def test_compiles_whole_with_every_padding(order, options):
    layer, x = separable_conv(order, **options), torch.randn(2, 4, 9, 8)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), **tolerance(torch.float32, 72))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (DepthwiseConv1d(4, 8, 3, padding="causal", dilation=2), (2, 4, 12)),
        (SeparableConv1d(4, 8, 3, padding="causal"), (2, 4, 12)),
        (DepthwiseConv2d(4, 2, 3, stride=2), (2, 4, 9, 8)),
        (SeparableConvTranspose2d(4, 6, 4, 2, 1, activation="relu"), (2, 4, 5, 6)),
        (SeparableConvTranspose2d(4, 6, 3, 2, 1, 1, order="pointwise_first"), (2, 4, 5, 6)),
        (SeparableConv2d(4, 6, 3, inner_norm=nn.BatchNorm2d, norm=nn.BatchNorm2d), (2, 4, 9, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_compiles_whole_forward_and_backward(layer, shape):
    torch._dynamo.reset()
    compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.randn(shape)
    expected, parameters = layer(x), list(layer.parameters())
    probe = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, parameters, probe)  # before batch norm's statistics move again
    actual = compiled(x)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float32, 72))
    for got, want in zip(torch.autograd.grad(actual, parameters, probe), wanted, strict=True):
        torch.testing.assert_close(got, want, **tolerance(torch.float32, 72 * probe[:, 0].numel()))


def test_compiles_to_code_with_the_default_backend():
    layer, x = separable_conv("depthwise_first", padding="same", stride=2), torch.randn(2, 4, 9, 8)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), **tolerance(torch.float32, 72))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", [o for o in PADDINGS if o.get("padding_mode") != "reflect"], ids=str)
def test_exports_with_free_batch_and_size(order, options):
    layer, x = separable_conv(order, **options).eval(), torch.randn(2, 4, 9, 8)
    free = {0: Dim("n"), 2: Dim("h", min=4, max=64), 3: Dim("w", min=4, max=64)}
    exported = torch.export.export(layer, (x,), dynamic_shapes={"input": free}).module()
    for shape in ((1, 4, 7, 12), (3, 4, 10, 9), (4, 4, 6, 6)):
        y = torch.randn(shape)
        torch.testing.assert_close(exported(y), layer(y), **tolerance(torch.float32, 72))


def test_exports_as_standard_operators_only():
    layer = separable_conv("pointwise_first", padding="same", stride=2)
    program = torch.export.export(layer, (torch.randn(2, 4, 9, 8),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith("aten.") for name in called), called
    assert any("conv2d" in name for name in called)


@pytest.mark.parametrize("layer", [separable_conv(order) for order in ORDERS] + [SeparableConvTranspose2d(4, 6, 3)])
def test_runs_in_bfloat16_under_autocast(layer):
    x = torch.randn(2, 4, 9, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), **tolerance(torch.bfloat16, 72))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("order", ORDERS)
def test_runs_in_the_dtype_it_was_made_in(order, dtype):
    layer = separable_conv(order, dtype=dtype)
    y = layer(torch.randn(2, 4, 9, 8, dtype=dtype))
    assert y.dtype == dtype
    exact = layer.double()(torch.zeros(1, 4, 9, 8, dtype=torch.float64))
    assert exact.dtype == torch.float64


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("padding", [1, "same", ((1, 0), (0, 1))], ids=str)
def test_channels_last_goes_through(order, padding):
    layer = separable_conv(order, padding=padding).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 9, 8)
    y = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x), **tolerance(torch.float32, 72))


@pytest.mark.parametrize("kind", [SeparableConv2d, SeparableConvTranspose2d])
@pytest.mark.parametrize("order", ORDERS)
def test_lives_on_the_meta_device_and_moves_off_it(kind, order):
    layer = kind(4, 6, 3, stride=2, order=order, device="meta")
    assert layer(torch.empty(2, 4, 9, 9, device="meta")).device.type == "meta"
    real = layer.to_empty(device="cpu")
    real.reset_parameters()
    assert torch.isfinite(real(torch.randn(2, 4, 9, 9))).all()
