"""SeparableConv and SeparableConvTranspose: two halves in either order, what stands between them, and every refusal."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import separable
from separable import InputError, SeparableConv1d, SeparableConv2d, SeparableConv3d, SeparableConvTranspose2d
from tolerance import tolerance

ORDERS = ("depthwise_first", "pointwise_first")
DENSE_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
LAYERS = {1: SeparableConv1d, 2: SeparableConv2d, 3: SeparableConv3d}


@pytest.mark.parametrize(
    ("order", "names"),
    [
        (
            "depthwise_first",
            {"conv_dw.weight": (12, 1, 3, 3), "conv_pw.weight": (4, 12, 1, 1), "conv_pw.bias": (4,)},
        ),
        (
            "pointwise_first",
            {"conv_pw.weight": (8, 6, 1, 1), "conv_dw.weight": (4, 2, 3, 3), "conv_dw.bias": (4,)},
        ),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_state_dict_speaks_the_fields_language(order, names, transposed):
    layer = (SeparableConvTranspose2d if transposed else SeparableConv2d)(6, 4, 3, depth_multiplier=2, order=order)
    if transposed and order == "depthwise_first":
        names = {**names, "conv_dw.weight": (6, 2, 3, 3)}
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == names


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_is_its_two_halves_one_after_the_other(dims, order):
    layer = LAYERS[dims](6, 4, 3, stride=2, padding="same", depth_multiplier=2, order=order, inner_activation="relu")
    x = torch.randn(2, 6, *(8, 7, 6)[:dims])
    first, second = (layer.conv_dw, layer.conv_pw) if order == "depthwise_first" else (layer.conv_pw, layer.conv_dw)
    torch.testing.assert_close(layer(x), second(F.relu(first(x))), **tolerance(torch.float32, 3**dims * 12))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("order", ORDERS)
def test_padding_modes_pad_the_depthwise_half_only(order, mode):
    layer = SeparableConv2d(4, 6, 3, padding=2, padding_mode=mode, order=order)
    dw = nn.Conv2d(4, 4, 3, padding=2, padding_mode=mode, groups=4, bias=False)
    if order == "pointwise_first":
        dw = nn.Conv2d(6, 6, 3, padding=2, padding_mode=mode, groups=6)
    dw.load_state_dict(layer.conv_dw.state_dict())
    x = torch.randn(2, 4, 7, 6)
    expected = layer.conv_pw(dw(x)) if order == "depthwise_first" else dw(layer.conv_pw(x))
    torch.testing.assert_close(layer(x), expected, **tolerance(torch.float32, 36))


@pytest.mark.parametrize("order", ORDERS)
def test_norm_comes_before_the_activation_of_its_place(order):
    layer = SeparableConv2d(
        4, 6, 3, order=order, inner_norm=nn.BatchNorm2d, inner_activation="relu", norm=nn.BatchNorm2d, activation="silu"
    )
    first, second = (layer.conv_dw, layer.conv_pw) if order == "depthwise_first" else (layer.conv_pw, layer.conv_dw)
    assert layer.inner_norm.num_features == first.out_channels
    x = torch.randn(8, 4, 7, 6)
    expected = F.silu(layer.norm(second(F.relu(layer.inner_norm(first(x))))))
    torch.testing.assert_close(layer(x), expected, **tolerance(torch.float32, 36))


def test_norms_follow_device_and_dtype():
    layer = SeparableConv2d(4, 6, 3, norm=nn.BatchNorm2d, inner_norm=nn.BatchNorm2d, device="meta", dtype=torch.float64)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert layer(torch.empty(2, 4, 6, 6, device="meta", dtype=torch.float64)).shape == (2, 6, 4, 4)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_transposed_is_the_dense_transposed_convolution_it_stands_for(dims, order):
    layer = getattr(separable, f"SeparableConvTranspose{dims}d")(
        3, 4, 4, stride=2, padding=1, output_padding=1, depth_multiplier=2, order=order, dtype=torch.float64
    )
    dw, pw, x = layer.conv_dw.weight, layer.conv_pw.weight, torch.randn(2, 3, *(4, 3, 5)[:dims], dtype=torch.float64)
    if order == "depthwise_first":  # [C_in, C_out, k...]: input c reaches output o through its m maps
        dense = torch.einsum("cr...,ocr->co...", dw, pw.view(4, 3, 2))
        bias = layer.conv_pw.bias
    else:
        dense = torch.einsum("or...,orc->co...", dw, pw.view(4, 2, 3))
        bias = layer.conv_dw.bias
    expected = DENSE_TRANSPOSE[dims](x, dense, bias, stride=2, padding=1, output_padding=1)
    torch.testing.assert_close(layer(x), expected, **tolerance(torch.float64, 6 * 4**dims))


@pytest.mark.parametrize("half", ["conv_dw", "conv_pw"])
def test_pruning_a_half_is_respected(half):
    layer, x = SeparableConv2d(4, 6, 3), torch.randn(1, 4, 6, 6)
    prune.random_unstructured(getattr(layer, half), "weight", amount=0.8)
    pruned = layer(x)
    getattr(layer, half).weight_orig.data.zero_()  # the hook multiplies the original by the mask, at each call
    assert not torch.equal(pruned, layer(x))


def test_hooks_on_the_halves_are_called_and_a_replaced_half_is_used():
    layer, x, seen = SeparableConv2d(4, 6, 3), torch.randn(1, 4, 6, 6), []
    handles = [half.register_forward_hook(lambda *args: seen.append(args[0])) for half in layer.children()]
    layer(x)
    assert seen == [layer.conv_dw, layer.conv_pw]
    for handle in handles:
        handle.remove()
    layer.conv_pw = nn.Sequential(layer.conv_pw, nn.ReLU())
    assert (layer(x) >= 0).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [SeparableConv2d, SeparableConvTranspose2d])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_compute_the_same(kind, order, duplicate):
    layer = kind(4, 6, 3, 2, 1, order=order, norm=nn.BatchNorm2d, activation="relu").eval()
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(duplicate(layer)(x), layer(x))


@pytest.mark.parametrize("order", ORDERS)
def test_reset_parameters_draws_both_halves_anew_and_resets_the_norm(order):
    layer = SeparableConv2d(4, 6, 3, order=order, norm=nn.BatchNorm2d)
    before = copy.deepcopy(layer.state_dict())
    layer.norm.running_mean.fill_(7)
    layer.reset_parameters()
    assert not torch.equal(before["conv_dw.weight"], layer.conv_dw.weight)
    assert not torch.equal(before["conv_pw.weight"], layer.conv_pw.weight)
    assert torch.equal(layer.norm.running_mean, torch.zeros(6))


def test_shows_both_halves_and_what_joins_them():
    layer = SeparableConv2d(4, 6, 3, padding="same", order="pointwise_first", inner_activation="relu")
    assert repr(layer) == (
        "SeparableConv2d(\n"
        "  4, 6, order='pointwise_first', inner_activation='relu'\n"
        "  (conv_pw): Conv2d(4, 6, kernel_size=(1, 1), stride=(1, 1), bias=False)\n"
        "  (conv_dw): DepthwiseConv2d(6, 6, kernel_size=(3, 3), padding='same')\n"
        ")"
    )


@pytest.mark.parametrize("kind", [SeparableConv2d, SeparableConvTranspose2d])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"in_channels": 0}, "in_channels = 0: must be a whole number of at least 1"),
        ({"out_channels": 2.5}, "out_channels = 2.5: must be a whole number of at least 1"),
        ({"depth_multiplier": 0}, "depth_multiplier = 0: must be a whole number of at least 1"),
        ({"kernel_size": "3"}, "kernel_size = '3': must be one int or 2 ints, one for each spatial dimension"),
        ({"stride": 0}, "stride = 0: must be at least 1 in each dimension"),
        ({"order": "both"}, "order = both: must be one of depthwise_first, pointwise_first"),
        ({"activation": "mish"}, "activation = mish: must be None or one of relu, relu6, silu, hard_swish, gelu"),
        (
            {"norm": "batch"},
            "norm = batch: must be called with a number of channels to make the module, as torch.nn.BatchNorm2d is",
        ),
    ],
)
def test_refuses_in_one_sentence(kind, options, sentence):
    with pytest.raises(InputError) as caught:
        kind(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **options})
    assert str(caught.value) == sentence


def test_refuses_a_norm_that_is_a_module_already():
    with pytest.raises(InputError, match="must be called with a number of channels"):
        SeparableConv2d(4, 6, 3, inner_norm=nn.BatchNorm2d(4))


@pytest.mark.parametrize("word", ["same", "causal", "valid"])
def test_transposed_refuses_words_with_the_reason(word):
    with pytest.raises(InputError, match="several input sizes give the same strided output size"):
        SeparableConvTranspose2d(4, 6, 3, padding=word)
