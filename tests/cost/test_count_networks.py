"""Whole networks against torch's own counter, published numbers, and gradients written as loops."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from separable.cost import count
from separable.layers import SeparableConv1d, SeparableConv2d, SeparableConv3d, SeparableConvTranspose2d
from separable.models import import_timm, import_torchvision


def timm(name):
    with torch.device("meta"):
        return import_timm().create_model(name)


def torchvision(name):
    models = import_torchvision().models
    with torch.device("meta"):
        return models.get_model(name, weights=None)


def separable_1d():
    convs = (
        SeparableConv1d(c, 2 * c, 5, padding="causal", dilation=d, activation="gelu") for c, d in ((8, 1), (16, 2))
    )
    return nn.Sequential(*convs, nn.Conv1d(32, 4, 3, groups=4))


def upsampling():
    return nn.Sequential(
        SeparableConv2d(3, 8, 3, stride=2, padding="same", depth_multiplier=2, inner_norm=nn.BatchNorm2d),
        SeparableConvTranspose2d(8, 6, 4, stride=2, padding=1, order="pointwise_first", depth_multiplier=2),
        nn.ConvTranspose2d(6, 3, 3, stride=2, groups=3, output_padding=1),
    )


NETWORKS = {
    "resnet18": (lambda: timm("resnet18"), (2, 3, 64, 64)),
    "efficientnet_b0": (lambda: timm("efficientnet_b0"), (1, 3, 64, 64)),
    "convnext_tiny": (lambda: timm("convnext_tiny"), (1, 3, 64, 64)),
    "vit_tiny": (lambda: timm("vit_tiny_patch16_224"), (1, 3, 224, 224)),
    "swin_tiny": (lambda: timm("swin_tiny_patch4_window7_224"), (1, 3, 224, 224)),
    "legacy_xception": (lambda: timm("legacy_xception"), (1, 3, 96, 96)),
    "standardised weights": (lambda: timm("eca_nfnet_l0"), (1, 3, 64, 64)),
    "torchvision vit_b_16": (lambda: torchvision("vit_b_16"), (1, 3, 224, 224)),
    "volume: r3d_18": (lambda: torchvision("r3d_18"), (1, 3, 4, 32, 32)),
    "torchvision shufflenet": (lambda: torchvision("shufflenet_v2_x0_5"), (1, 3, 64, 64)),
    "sequence": (separable_1d, (2, 8, 50)),
    "transposed": (upsampling, (1, 3, 17, 16)),
    "separable volume": (lambda: SeparableConv3d(4, 8, 3, stride=2, padding=1), (1, 4, 6, 7, 8)),
    "recurrent": (lambda: nn.LSTM(6, 5, num_layers=2, bidirectional=True), (7, 2, 6)),
    "transformer": (lambda: nn.TransformerEncoderLayer(16, 4, 32), (5, 2, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_half_of_torchs_flops(name):
    make, shape = NETWORKS[name]
    model = make().eval()
    counted = count(model, torch.zeros(shape))
    with FlopCounterMode(display=False) as torchs, torch.no_grad():
        model.to("meta")(torch.zeros(shape, device="meta"))
    assert 2 * counted.macs == torchs.get_total_flops() > 0
    assert counted.params == sum(p.numel() for p in model.parameters())
    assert counted.macs < counted.training_macs < 3 * counted.macs


@pytest.mark.parametrize(
    ("name", "macs", "params", "papers_macs"),
    [
        ("mobilenetv1_100", 568_740_352, 4_231_976, 569e6),
        ("mobilenetv2_100", 300_774_272, 3_504_872, 300e6),
        ("mobilenetv3_large_100", 216_589_760, 5_483_032, 219e6),
    ],
)
def test_published_counts_at_224(name, macs, params, papers_macs):
    counted = count(timm(name), torch.zeros(1, 3, 224, 224))
    assert (counted.macs, counted.params) == (macs, params)
    assert counted.macs == pytest.approx(papers_macs, rel=0.03)


def test_xception_parameters():
    assert count(timm("legacy_xception"), torch.zeros(1, 3, 299, 299)).params == 22_855_952


def test_a_training_step_of_ungrouped_layers_agrees_with_torch():
    for model, shape in ((timm("resnet18"), (2, 3, 64, 64)), (nn.TransformerEncoderLayer(16, 4, 32), (5, 2, 16))):
        counted = count(model, torch.zeros(shape))
        with FlopCounterMode(display=False) as torchs:
            model.to("meta")(torch.zeros(shape, device="meta")).sum().backward()
        assert 2 * counted.training_macs == torchs.get_total_flops()


def grouped_gradients(x, weight, grad, groups):
    """Both gradients of an unpadded convolution as scalar loops, and how many products each took."""
    (filters, inner, rows, columns), per_group = weight.shape, weight.shape[0] // groups
    grad_x, grad_weight, products = torch.zeros_like(x), torch.zeros_like(weight), [0, 0]
    places = (range(x.shape[0]), range(filters), range(grad.shape[2]), range(grad.shape[3]))
    for n, o, i, j in itertools.product(*places):
        for c, a, b in itertools.product(range(inner), range(rows), range(columns)):
            channel = o // per_group * inner + c
            grad_x[n, channel, i + a, j + b] += grad[n, o, i, j] * weight[o, c, a, b]
            grad_weight[o, c, a, b] += grad[n, o, i, j] * x[n, channel, i + a, j + b]
            products[0] += 1
            products[1] += 1
    return grad_x, grad_weight, products


@pytest.mark.parametrize("groups", [2, 6])
def test_grouped_backward_is_counted_as_loops_do_it_and_torch_overcounts_it(groups):
    conv = nn.Conv2d(6, 6, 3, groups=groups, bias=False, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as torchs:
        y = conv(x)
        forward_flops = torchs.get_total_flops()
        grad = torch.randn_like(y)
        y.backward(grad)
    backward_flops = torchs.get_total_flops() - forward_flops

    grad_x, grad_weight, products = grouped_gradients(x.detach(), conv.weight.detach(), grad, groups)
    torch.testing.assert_close(x.grad, grad_x)  # the loops do compute the gradients
    torch.testing.assert_close(conv.weight.grad, grad_weight)

    counted = count(conv, x)
    assert counted.macs == forward_flops // 2
    assert counted.training_macs == counted.macs + sum(products)
    assert backward_flops // 2 == products[0] + groups * products[1]  # torch's weight gradients, groups times too many


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_convolution_agrees_with_torch(data):
    dims, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    channels, filters = groups * data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 3))
    kernel, stride, dilation = (data.draw(st.integers(1, 3)) for _ in range(3))
    padding, size = data.draw(st.integers(0, 2)), data.draw(st.integers(7, 9))
    x = torch.zeros(data.draw(st.integers(1, 3)), channels, *[size] * dims)
    if transposed := data.draw(st.booleans()):
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        weight = torch.zeros(channels, filters // groups, *[kernel] * dims)
        options = (stride, min(padding, kernel - 1), 0, groups, dilation)
    else:
        conv = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        weight = torch.zeros(filters, channels // groups, *[kernel] * dims)
        options = (stride, padding, dilation, groups)

    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, x):
            return conv(x, self.weight, None, *options)

    with FlopCounterMode(display=False) as torchs, torch.no_grad():
        Conv()(x)
    counted = count(Conv(), x)
    assert 2 * counted.macs == torchs.get_total_flops()
    assert counted.training_macs == 2 * counted.macs
    assert (counted.layers[0].kind == "transposed") == transposed
