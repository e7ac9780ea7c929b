"""Blocks against plain torch and timm's, and that they travel: traced, exported, copied, trained."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norms import lived_in
from separable.errors import InputError
from separable.layers import (
    ConvNeXtBlock,
    DepthwiseConv2d,
    InvertedResidual,
    SeparableConv2d,
    SqueezeExcite,
    XceptionBlock,
    mobilenet_v1_block,
)
from separable.models import import_timm

BLOCKS = {
    "mobilenet_v1": lambda: mobilenet_v1_block(8, 12, stride=2),
    "inverted residual": lambda: InvertedResidual(8, 8, expanded_channels=24),
    "inverted residual, no expansion": lambda: InvertedResidual(8, 12, expanded_channels=8, stride=2),
    "inverted residual, v3": lambda: InvertedResidual(
        8, 12, 24, kernel_size=5, stride=2, activation="hard_swish", squeeze_channels=8
    ),
    "xception middle": lambda: XceptionBlock(8, (8, 8, 8)),
    "xception entry": lambda: XceptionBlock(8, (12, 12), stride=2, starts_with_relu=False),
    "convnext": lambda: ConvNeXtBlock(8, layer_scale=0.5),
}


@pytest.fixture(params=BLOCKS, ids=str)
def block(request):
    return lived_in(BLOCKS[request.param]())


@pytest.mark.parametrize("size", [(14, 14), (9, 7), (1, 1)], ids=str)
@pytest.mark.parametrize(("stride", "out_channels"), [(1, 8), (2, 12)])
def test_a_stride_divides_the_size_and_rounds_up(size, stride, out_channels):
    for block in (
        mobilenet_v1_block(8, out_channels, stride),
        InvertedResidual(8, out_channels, 24, 5, stride),
        XceptionBlock(8, (8, out_channels), stride),
    ):
        height, width = (-(-n // stride) for n in size)
        assert block(torch.randn(2, 8, *size)).shape == (2, out_channels, height, width)


def test_mobilenet_v1_block_is_the_composition_the_paper_draws():
    block = lived_in(mobilenet_v1_block(8, 12, stride=2)).double().eval()
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    dw = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False).double()
    pw = nn.Conv2d(8, 12, 1, bias=False).double()
    dw.load_state_dict(block.conv_dw.state_dict())
    pw.load_state_dict(block.conv_pw.state_dict())
    expected = F.relu(block.norm(pw(F.relu(block.inner_norm(dw(x))))))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("out_channels", [8, 12])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("activation", "squeeze"), [("relu6", None), ("hard_swish", 8), ("relu", 8)])
def test_inverted_residual_is_timm_s_with_the_same_names(activation, squeeze, stride, out_channels):
    timm = import_timm()
    block = lived_in(
        InvertedResidual(8, out_channels, 24, 5, stride, activation=activation, squeeze_channels=squeeze)
    ).eval()
    acts = {"relu6": nn.ReLU6, "hard_swish": nn.Hardswish, "relu": nn.ReLU}
    se = timm.models._efficientnet_blocks.SqueezeExcite
    theirs = timm.models._efficientnet_blocks.InvertedResidual(
        8, out_channels, 5, stride, exp_ratio=3.0, pad_type="", act_layer=acts[activation],
        se_layer=None if squeeze is None else lambda channels, **_: se(
            channels, rd_channels=squeeze, gate_layer=nn.Hardsigmoid, force_act_layer=nn.ReLU
        ),
    ).eval()  # fmt: skip
    theirs.load_state_dict(block.state_dict(), strict=True)
    x = torch.randn(2, 8, 9, 10)
    torch.testing.assert_close(block(x), theirs(x))


def test_inverted_residual_adds_its_input_only_where_the_shapes_agree():
    assert InvertedResidual(8, 8, 24).adds_input
    assert not InvertedResidual(8, 8, 24, stride=2).adds_input
    assert not InvertedResidual(8, 12, 24).adds_input


def test_squeeze_excite_scales_by_the_gate_of_the_channel_means():
    block = SqueezeExcite(6, 3).double()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    means = x.sum(dim=(2, 3)) / 20  # [N, C]
    hidden = (means @ block.conv_reduce.weight[:, :, 0, 0].T + block.conv_reduce.bias).clamp(min=0)
    gate = ((hidden @ block.conv_expand.weight[:, :, 0, 0].T + block.conv_expand.bias + 3) / 6).clamp(0, 1)
    torch.testing.assert_close(block(x), x * gate[:, :, None, None])


@pytest.mark.parametrize("starts_with_relu", [True, False])
def test_xception_block_is_the_composition_the_paper_draws(starts_with_relu):
    block = lived_in(XceptionBlock(8, (12, 10), stride=2, starts_with_relu=starts_with_relu)).double().eval()
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    y = x
    for i, conv in enumerate(block.convs):
        y = F.relu(y) if starts_with_relu or i else y
        y = F.conv2d(y, conv.conv_dw.weight, padding=1, groups=y.shape[1])
        y = conv.norm(F.conv2d(y, conv.conv_pw.weight))
    expected = F.max_pool2d(y, 3, 2, 1) + block.skipbn(F.conv2d(x, block.skip.weight, stride=2))
    torch.testing.assert_close(block(x), expected)


def test_xception_block_passes_its_input_by_where_shapes_agree():
    block = XceptionBlock(8, (8, 8, 8)).eval()
    for conv in block.convs:
        nn.init.zeros_(conv.norm.weight)
    x = torch.randn(1, 8, 5, 5)
    assert block.skip is None
    torch.testing.assert_close(block(x), x)


def test_convnext_block_is_timm_s():
    timm = import_timm()
    block = ConvNeXtBlock(8, layer_scale=0.5).double()
    theirs = timm.models.convnext.ConvNeXtBlock(8, ls_init_value=0.5).double()
    names = {name: name.replace("fc", "mlp.fc") for name in block.state_dict()}
    theirs.load_state_dict({names[name]: value for name, value in block.state_dict().items()}, strict=True)
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    torch.testing.assert_close(block(x), theirs(x))


def test_every_parameter_gets_a_gradient(block):
    block(torch.randn(2, 8, 8, 8)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_block_is_traced_around_our_layers(block):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, (SeparableConv2d, DepthwiseConv2d)) or super().is_leaf_module(module, name)

    block.eval()
    holder = nn.Sequential(block)  # a SeparableConv2d is itself a leaf
    traced = torch.fx.GraphModule(holder, Tracer().trace(holder))
    x = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(traced(x), block(x))


def test_a_block_is_exported_and_compiled_in_one_graph(block):
    block.eval()
    x = torch.randn(2, 8, 7, 9)
    exported = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(exported.module()(x[:1].repeat(3, 1, 1, 1)), block(x[:1].repeat(3, 1, 1, 1)))
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), block(x))


def test_a_block_is_copied_and_pickled(block):
    block.eval()
    x = torch.randn(1, 8, 6, 6)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        torch.testing.assert_close(twin(x), block(x))


def test_a_block_runs_channels_last_and_on_the_meta_device(block):
    block.eval()
    x = torch.randn(2, 8, 6, 6)
    expected = block(x)
    torch.testing.assert_close(block(x.to(memory_format=torch.channels_last)), expected)
    assert block.to("meta")(x.to("meta")).shape == expected.shape


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: InvertedResidual(8, 8, 24, kernel_size=4), "kernel_size"),
        (lambda: InvertedResidual(8, 0, 24), "out_channels"),
        (lambda: InvertedResidual(8, 8, 0), "expanded_channels"),
        (lambda: InvertedResidual(8, 8, 24, stride=0), "stride"),
        (lambda: InvertedResidual(8, 8, 24, activation="tanh"), "activation"),
        (lambda: InvertedResidual(8, 8, 24, squeeze_channels=0), "squeeze_channels"),
        (lambda: mobilenet_v1_block(8, -1), "out_channels"),
        (lambda: XceptionBlock(8, ()), "widths"),
        (lambda: XceptionBlock(8, (8,), stride=0), "stride"),
        (lambda: ConvNeXtBlock(8, kernel_size=6), "kernel_size"),
        (lambda: ConvNeXtBlock(8, expand_ratio=0), "expand_ratio"),
    ],
)
def test_refuses_by_name(make, argument):
    with pytest.raises(InputError, match=argument):
        make()
