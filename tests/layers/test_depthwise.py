"""DepthwiseConv1d/2d/3d and their transposes: torch's grouped convolution with more paddings, and every refusal."""

import copy
import pickle

import pytest
import torch
from torch import nn

from separable import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d, InputError, functional
from separable.layers import DepthwiseConvTranspose1d, DepthwiseConvTranspose2d, DepthwiseConvTranspose3d
from tolerance import tolerance

PLAIN = {1: (DepthwiseConv1d, nn.Conv1d), 2: (DepthwiseConv2d, nn.Conv2d), 3: (DepthwiseConv3d, nn.Conv3d)}
TRANSPOSED = {
    1: (DepthwiseConvTranspose1d, nn.ConvTranspose1d),
    2: (DepthwiseConvTranspose2d, nn.ConvTranspose2d),
    3: (DepthwiseConvTranspose3d, nn.ConvTranspose3d),
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("channels", "out_channels"), [(6, 6), (6, 12), (6, 3)])
def test_is_torchs_grouped_convolution(dims, channels, out_channels):
    ours, torchs = PLAIN[dims]
    options = {"stride": 2, "padding": 1, "dilation": 2}
    layer = ours(channels, out_channels, 3, **options)
    peer = torchs(channels, out_channels, 3, **options, groups=min(channels, out_channels))
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in peer.state_dict().items()}
    peer.load_state_dict(layer.state_dict())
    x = torch.randn(2, channels, *(9, 8, 7)[:dims])
    torch.testing.assert_close(layer(x), peer(x), **tolerance(torch.float32, 3**dims))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_transposed_is_torchs_grouped_transposed_convolution(dims, multiplier):
    ours, torchs = TRANSPOSED[dims]
    options = {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2}
    layer = ours(4, 4 * multiplier, 3, **options)
    peer = torchs(4, 4 * multiplier, 3, **options, groups=4)
    peer.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, *(5, 4, 3)[:dims])
    torch.testing.assert_close(layer(x), peer(x), **tolerance(torch.float32, 3**dims))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same", "valid", (2, 1)], ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_padding_modes_are_torchs(dims, padding, mode):
    ours, torchs = PLAIN[dims]
    padding = padding if not isinstance(padding, tuple) else (*padding, 0)[:dims]
    layer = ours(4, 4, 4, padding=padding, padding_mode=mode)
    peer = torchs(4, 4, 4, padding=padding, padding_mode=mode, groups=4)
    peer.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, *(6, 7, 8)[:dims])
    with torch.no_grad():
        torch.testing.assert_close(layer(x), peer(x), **tolerance(torch.float32, 4**dims))


def test_pairs_and_strided_same_pad_with_any_mode():
    layer = DepthwiseConv2d(4, 4, 3, stride=2, padding="same", padding_mode="reflect")
    x = torch.randn(1, 4, 8, 9)
    padded = nn.functional.pad(x, (1, 1, 0, 1), mode="reflect")  # 9 -> 5: one each side; 8 -> 4: the odd one below
    expected = nn.functional.conv2d(padded, layer.weight, layer.bias, 2, groups=4)
    torch.testing.assert_close(layer(x), expected, **tolerance(torch.float32, 9))


def test_causal_never_sees_the_future():
    layer, x = DepthwiseConv1d(4, 4, 5, padding="causal", dilation=2), torch.randn(1, 4, 20)
    changed = x.clone()
    changed[..., 12:] = 0
    before, after = layer(x), layer(changed)
    assert torch.equal(before[..., :12], after[..., :12])
    assert before.shape == x.shape


def test_layer_adds_nothing_to_the_function():
    layer, x = DepthwiseConv2d(4, 8, (3, 5), padding=((1, 0), (2, 3)), activation="silu"), torch.randn(2, 4, 7, 8)
    expected = functional.depthwise_conv2d(x, layer.weight, layer.bias, padding=((1, 0), (2, 3)), activation="silu")
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("shape", [(6, 24), (24, 6)])
def test_starts_as_torchs_convolution_starts(shape):
    torch.manual_seed(3)
    layer = DepthwiseConv2d(*shape, 3)
    torch.manual_seed(3)
    peer = nn.Conv2d(*shape, 3, groups=6)
    assert torch.equal(layer.weight, peer.weight)
    assert torch.equal(layer.bias, peer.bias)
    torch.manual_seed(3)
    layer.reset_parameters()
    assert torch.equal(layer.weight, peer.weight)


def test_shows_the_arguments_that_matter():
    assert repr(DepthwiseConv2d(8, 8, 3)) == "DepthwiseConv2d(8, 8, kernel_size=(3, 3))"
    layer = DepthwiseConv1d(
        8, 16, 3, 2, "causal", 2, bias=False, padding_mode="replicate", activation="gelu", depth_multiplier=2
    )
    assert layer.extra_repr() == (
        "8, 16, kernel_size=(3,), stride=(2,), padding='causal', dilation=(2,), bias=False, "
        "padding_mode='replicate', depth_multiplier=2, activation='gelu'"
    )
    transposed = DepthwiseConvTranspose2d(8, 8, 4, stride=2, padding=1, output_padding=(1, 0))
    assert transposed.extra_repr() == ("8, 8, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), output_padding=(1, 0)")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_compute_the_same(duplicate):
    layer, x = DepthwiseConv2d(4, 8, 3, padding=((1, 0), (0, 1)), activation="relu"), torch.randn(1, 4, 6, 6)
    other = duplicate(layer)
    assert torch.equal(other(x), layer(x))
    assert repr(other) == repr(layer)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DepthwiseConv2d(0, 4, 3), "in_channels = 0: must be a whole number of at least 1"),
        (lambda: DepthwiseConv2d(4, -4, 3), "out_channels = -4: must be a whole number of at least 1"),
        (lambda: DepthwiseConv2d(4.0, 4, 3), "in_channels = 4.0: must be a whole number of at least 1"),
        (lambda: DepthwiseConv2d(True, 4, 3), "in_channels = True: must be a whole number of at least 1"),
        (lambda: DepthwiseConv2d("4", 4, 3), "in_channels = '4': must be a whole number of at least 1"),
        (lambda: DepthwiseConv2d(4, 6, 3), "out_channels = 6: must be a multiple or a divisor of in_channels = 4"),
        (lambda: DepthwiseConv2d(4, 8, 3, depth_multiplier=3), "depth_multiplier = 3: 4 -> 8 channels make it 2"),
        (
            lambda: DepthwiseConv2d(4, 4, 0),
            "kernel_size = 0: must be at least 1 in each dimension",
        ),
        (lambda: DepthwiseConv1d(4, 4, (3, 3)), "kernel_size = (3, 3): must be one int"),
        (
            lambda: DepthwiseConv2d(4, 4, 3, padding_mode="mirror"),
            "padding_mode = mirror: must be one of zeros, reflect, replicate, circular",
        ),
        (
            lambda: DepthwiseConv3d(4, 4, 3, padding="causal"),
            "padding = 'causal': exists for 1-D convolution only, and this one is 3-D",
        ),
        (
            lambda: DepthwiseConv2d(4, 4, 3, activation=nn.ReLU()),
            "activation = ReLU(): must be None or one of relu, relu6, silu, hard_swish, gelu",
        ),
        (
            lambda: DepthwiseConvTranspose2d(4, 4, 3, padding_mode="reflect"),
            'padding_mode = reflect: must be "zeros" for a transposed convolution',
        ),
        (
            lambda: DepthwiseConv2d(4, 4, 3, padding=6, padding_mode="reflect")(torch.zeros(1, 4, 5, 5)),
            "padding = [(6, 6), (6, 6)]: reflect can pad by at most one less than the input's size [5, 5]",
        ),
        (
            lambda: DepthwiseConv2d(4, 4, 3, padding=6, padding_mode="circular")(torch.zeros(1, 4, 5, 5)),
            "padding = [(6, 6), (6, 6)]: circular can pad by at most the input's size [5, 5]",
        ),
    ],
)
def test_refuses_in_one_sentence(make, sentence):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == sentence
