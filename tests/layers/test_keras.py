"""Keras 3 on its torch backend as an independent implementation: weights carried across, every padding it has."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest
import torch

from separable import DepthwiseConv1d, DepthwiseConv2d, SeparableConv1d, SeparableConv2d
from tolerance import tolerance

keras = pytest.importorskip("keras", reason="keras is not installed")
if keras.backend.backend() != "torch":
    pytest.skip("keras was imported with another backend", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with numpy 2

OURS = {("depthwise", 1): DepthwiseConv1d, ("depthwise", 2): DepthwiseConv2d}
OURS |= {("separable", 1): SeparableConv1d, ("separable", 2): SeparableConv2d}
WINDOWS = [  # kernel, stride, dilation, padding
    (3, 1, 1, "valid"),
    (3, 1, 1, "same"),
    (3, 2, 1, "same"),
    (4, 1, 1, "same"),
    (4, 2, 1, "same"),
    (2, 2, 1, "same"),
    (5, 3, 1, "same"),
    (2, 3, 1, "same"),
    (3, 1, 2, "same"),
    (4, 2, 1, "valid"),
]
SIZES = {1: [(13,), (12,)], 2: [(9, 8), (12, 7)]}


def kernel_of(weight: np.ndarray, dims: int) -> torch.Tensor:
    """Keras [k..., C, m] as ours [C*m, 1, k...]."""
    weight = np.moveaxis(weight, (dims, dims + 1), (0, 1))
    return torch.from_numpy(weight.reshape(-1, 1, *weight.shape[2:]).copy())


def outputs(kind: str, dims: int, window, size, multiplier: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The same layer in Keras and here, on one input [2, 3, ...] of float32."""
    kernel, stride, dilation, padding = window
    name = {"depthwise": "DepthwiseConv", "separable": "SeparableConv"}[kind]
    first = [5] if kind == "separable" else []
    theirs = getattr(keras.layers, f"{name}{dims}D")(
        *first, kernel, stride, padding, depth_multiplier=multiplier, dilation_rate=dilation, bias_initializer="normal"
    )
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    expected = np.asarray(keras.ops.convert_to_numpy(theirs(x)))
    weights = [np.asarray(w) for w in theirs.get_weights()]
    out_channels = 5 if kind == "separable" else 3 * multiplier
    ours = OURS[kind, dims](3, out_channels, kernel, stride, padding, dilation, depth_multiplier=multiplier)
    state = {"weight": kernel_of(weights[0], dims), "bias": torch.from_numpy(weights[-1].copy())}
    if kind == "separable":
        pointwise = weights[1].reshape(3 * multiplier, 5).T.copy().reshape(5, -1, *[1] * dims)
        state = {
            "conv_dw.weight": state["weight"],
            "conv_pw.weight": torch.from_numpy(pointwise),
            "conv_pw.bias": state["bias"],
        }
    ours.load_state_dict(state)
    with torch.no_grad():
        actual = ours(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
    return actual, torch.from_numpy(np.moveaxis(expected, -1, 1).copy())


@pytest.mark.parametrize("kind", ["depthwise", "separable"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("dims", [1, 2])
def test_equals_keras(dims, window, kind):
    for size in SIZES[dims]:
        actual, expected = outputs(kind, dims, window, size)
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, **tolerance(torch.float32, window[0] ** dims * 6))


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (4, 2)])
def test_causal_equals_keras_grouped_convolution(kernel, dilation):
    """Keras refuses "causal" in its depthwise and separable layers; its Conv1D takes it, and groups."""
    theirs = keras.layers.Conv1D(6, kernel, padding="causal", dilation_rate=dilation, groups=3)
    x = np.random.default_rng(0).standard_normal((2, 13, 3)).astype(np.float32)
    expected = np.asarray(keras.ops.convert_to_numpy(theirs(x)))
    ours = DepthwiseConv1d(3, 6, kernel, padding="causal", dilation=dilation)
    weight, bias = (np.asarray(w) for w in theirs.get_weights())  # [k, 1, 6]
    ours.load_state_dict({"weight": torch.from_numpy(weight.T.copy()), "bias": torch.from_numpy(bias.copy())})
    with torch.no_grad():
        actual = ours(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
    torch.testing.assert_close(
        actual, torch.from_numpy(np.moveaxis(expected, -1, 1).copy()), **tolerance(torch.float32, kernel)
    )
