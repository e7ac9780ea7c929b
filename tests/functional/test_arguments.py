"""Every mistake in the arguments of a function is one sentence: the argument, the value it had, the rule it breaks."""

import numpy as np
import pytest
import torch

from separable import InputError, functional

X, W, PW = torch.zeros(1, 4, 6, 6), torch.zeros(4, 1, 3, 3), torch.zeros(5, 4, 1, 1)
ONE_OR_TWO = "must be one int or 2 ints, one for each spatial dimension"
PADDINGS = "must be one int, 2 ints or 2 pairs (before, after)"
ACTIVATIONS = "must be None or one of relu, relu6, silu, hard_swish, gelu"


def depthwise(x=X, weight=W, bias=None, **options):
    return lambda: functional.depthwise_conv2d(x, weight, bias, **options)


def separable(x=X, dw=W, pw=PW, dw_bias=None, pw_bias=None, **options):
    return lambda: functional.separable_conv2d(x, dw, pw, dw_bias, pw_bias, **options)


def transpose(x=X, weight=W, bias=None, **options):
    return lambda: functional.depthwise_conv_transpose2d(x, weight, bias, **options)


MISTAKES = [
    (
        depthwise(X[0]),
        "input = tensor of shape [4, 6, 6]: must have 4 dimensions [N, C, H, W]; "
        "a single example becomes a batch with x.unsqueeze(0)",
    ),
    (depthwise(X[0, 0]), "input = tensor of shape [6, 6]: must have 4 dimensions [N, C, H, W]"),
    (depthwise(X[:, :0]), "input = tensor of shape [1, 0, 6, 6]: must have at least one channel"),
    (depthwise(X[:, :, :0], padding=2), "input = spatial size [0, 6]: must be at least 1 in each dimension"),
    (depthwise(np.zeros((1, 4, 6, 6))), "input = a ndarray: must be a torch.Tensor"),
    (depthwise(None), "input = a NoneType: must be a torch.Tensor"),
    (depthwise(X.long()), "input = tensor of torch.int64: must be floating point; convert it with x.float()"),
    (
        depthwise(X[:, :, :2]),
        "input = spatial size [2, 6]: padded by [(0, 0), (0, 0)] it is smaller than the kernel [3, 3]",
    ),
    (
        depthwise(dilation=3),
        "input = spatial size [6, 6]: padded by [(0, 0), (0, 0)] it is smaller than the kernel [3, 3] "
        "at dilation [3, 3]",
    ),
    (depthwise(weight=None), "weight = None: must be a torch.Tensor"),
    (depthwise(weight=W[0]), "weight = tensor of shape [1, 3, 3]: must have 4 dimensions, [C*m, 1, k...]"),
    (depthwise(weight=W[:, :, :0]), "weight = tensor of shape [4, 1, 0, 3]: must have no empty dimension"),
    (depthwise(weight=W[:0]), "weight = tensor of shape [0, 1, 3, 3]: must have no empty dimension"),
    (depthwise(weight=W.double()), "weight = tensor of torch.float64: must have the input's dtype, torch.float32"),
    (depthwise(weight=W.to("meta")), "weight = tensor on meta: must be on the input's device, cpu"),
    (
        depthwise(weight=torch.zeros(6, 1, 3, 3)),
        "weight = tensor of shape [6, 1, 3, 3]: 6 filters cannot be shared equally by 4 input channels; "
        "weight is [C*depth_multiplier, 1, k...]",
    ),
    (
        depthwise(weight=torch.zeros(8, 4, 3, 3)),
        "weight = tensor of shape [8, 4, 3, 3]: must be [C*depth_multiplier, 1, k...] or [C/depth_multiplier, "
        "depth_multiplier, k...] for C = 4 input channels; to mix channels use separable_conv or a 1x1 convolution",
    ),
    (depthwise(bias=torch.zeros(3)), "bias = tensor of shape [3]: must have shape [4], one for each output channel"),
    (depthwise(stride=0), "stride = 0: must be at least 1 in each dimension"),
    (depthwise(stride=(1, -2)), "stride = (1, -2): must be at least 1 in each dimension"),
    (depthwise(stride=1.5), f"stride = 1.5: {ONE_OR_TWO}"),
    (depthwise(stride=True), f"stride = True: {ONE_OR_TWO}"),
    (depthwise(stride="2"), f"stride = '2': {ONE_OR_TWO}"),
    (depthwise(stride=(1, 2, 3)), f"stride = (1, 2, 3): {ONE_OR_TWO}"),
    (depthwise(dilation=None), f"dilation = None: {ONE_OR_TWO}"),
    (depthwise(dilation=(1, 2.0)), f"dilation = (1, 2.0): {ONE_OR_TWO}"),
    (depthwise(padding=-1), "padding = -1: must not be negative"),
    (depthwise(padding=((0, 1), (-1, 0))), "padding = ((0, 1), (-1, 0)): must not be negative"),
    (depthwise(padding=(1, 2, 3)), f"padding = (1, 2, 3): {PADDINGS}"),
    (depthwise(padding=((1, 2, 3), (1, 2))), f"padding = ((1, 2, 3), (1, 2)): {PADDINGS}"),
    (depthwise(padding=False), f"padding = False: {PADDINGS}"),
    (depthwise(padding=0.5), f"padding = 0.5: {PADDINGS}"),
    (depthwise(padding="sam"), 'padding = \'sam\': must be ints, pairs of ints, "valid" or "same"'),
    (depthwise(padding="causal"), "padding = 'causal': exists for 1-D convolution only, and this one is 2-D"),
    (depthwise(activation="elu"), f"activation = elu: {ACTIVATIONS}"),
    (depthwise(activation=["relu"]), f"activation = ['relu']: {ACTIVATIONS}"),
    (depthwise(impl="fast"), 'impl = fast: must be "auto", "reference", "native" or "triton"'),
    (depthwise(impl="triton"), 'impl = triton: has no kernels in this version; use "auto", "reference" or "native"'),
    (separable(order="dw"), "order = dw: must be one of depthwise_first, pointwise_first"),
    (separable(inner_activation="tanh"), f"inner_activation = tanh: {ACTIVATIONS}"),
    (
        separable(dw=torch.zeros(6, 1, 3, 3)),
        "dw_weight = tensor of shape [6, 1, 3, 3]: must be [C_in*m, 1, k...] for C_in = 4 input channels "
        "when the depthwise half comes first",
    ),
    (
        separable(order="pointwise_first"),
        "dw_weight = tensor of shape [4, 1, 3, 3]: must be [C_out, m, k...] with C_out*m = 5, "
        "the maps that pw_weight makes",
    ),
    (separable(pw=torch.zeros(5, 3, 1, 1)), "pw_weight = tensor of shape [5, 3, 1, 1]: must read 4 channels, not 3"),
    (
        separable(pw=torch.zeros(5, 4, 3, 3)),
        "pw_weight = tensor of shape [5, 4, 3, 3]: must have a kernel of 1 in every dimension",
    ),
    (
        separable(pw=torch.zeros(5, 4)),
        "pw_weight = tensor of shape [5, 4]: must have 4 dimensions, [C_out, C_in*m, 1...] or [C_out*m, C_in, 1...]",
    ),
    (
        separable(pw_bias=torch.zeros(4)),
        "pw_bias = tensor of shape [4]: must have shape [5], one for each output channel",
    ),
    (
        separable(dw_bias=torch.zeros(4).double()),
        "dw_bias = tensor of torch.float64: must have the input's dtype, torch.float32",
    ),
    (
        transpose(padding="same"),
        "padding = 'same': a transposed convolution takes ints and output_padding: several input sizes give the same "
        "strided output size, so the word does not say which one to restore",
    ),
    (transpose(padding=((1, 0), (1, 0))), f"padding = ((1, 0), (1, 0)): {ONE_OR_TWO}"),
    (transpose(padding=-1), "padding = -1: must be at least 0 in each dimension"),
    (
        transpose(stride=2, output_padding=2),
        "output_padding = (2, 2): must be smaller than stride (2, 2) or dilation (1, 1)",
    ),
    (
        transpose(weight=torch.zeros(3, 1, 3, 3)),
        "weight = tensor of shape [3, 1, 3, 3]: must be [C, m, k...] or [C/m, m, k...] for C = 4 input channels",
    ),
    (
        transpose(X[:, :, :1, :1], padding=2),
        "input = spatial size [1, 1]: padding [2, 2] leaves nothing of the output",
    ),
    (transpose(X[:, :, :0]), "input = spatial size [0, 6]: must be at least 1 in each dimension"),
]


@pytest.mark.parametrize(("call", "sentence"), MISTAKES, ids=[sentence.split(":")[0] for _, sentence in MISTAKES])
def test_says_in_one_sentence(call, sentence):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == sentence
    assert isinstance(caught.value, ValueError)


def test_one_dimension_is_spoken_of_in_the_singular():
    with pytest.raises(InputError, match=r"^padding = \(1, 2\): must be one int or one pair, \(\(before, after\),\)$"):
        functional.depthwise_conv1d(torch.zeros(1, 4, 6), torch.zeros(4, 1, 3), padding=(1, 2))
    with pytest.raises(InputError, match=r"^stride = \(1, 1\): must be one int$"):
        functional.depthwise_conv1d(torch.zeros(1, 4, 6), torch.zeros(4, 1, 3), stride=(1, 1))


def test_numpy_ints_are_ints():
    y = functional.depthwise_conv2d(X, W, stride=np.int64(2), padding=(np.int32(1), np.int8(1)))
    assert y.shape == (1, 4, 3, 3)


def test_float64_is_refused_under_autocast_which_would_leave_it_alone():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InputError, match="must have the input's dtype"):
        functional.depthwise_conv2d(X, W.double())
