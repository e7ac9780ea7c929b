"""Our batch norms are torch's, parameter by parameter and step by step, with the activation in the same pass."""

import importlib

import pytest
import torch
from torch import nn

from separable import layers
from separable.functional.arguments import ACTIVATIONS

PAIRS = [
    (1, nn.BatchNorm1d, layers.BatchNorm1d),
    (2, nn.BatchNorm2d, layers.BatchNorm2d),
    (3, nn.BatchNorm3d, layers.BatchNorm3d),
]


@pytest.fixture(autouse=True)
def native_on_small_inputs(monkeypatch):
    """As on the large ones, for which `auto` is native."""
    function = importlib.import_module("separable.functional.batch_norm")
    for name in ("LARGE_ALONE", "LARGE", "LARGE_SEQUENCE"):
        monkeypatch.setattr(function, name, 0)


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize(("dims", "torchs", "ours"), PAIRS)
def test_trains_and_evaluates_as_torch_does(dims, torchs, ours, options):
    theirs, own = torchs(12, **options), ours(12, **options)
    own.load_state_dict(theirs.state_dict())
    for _ in range(3):
        x = torch.randn(4, 12, *(5,) * dims).movedim(1, -1).contiguous().movedim(-1, 1)
        torch.testing.assert_close(own(x, "relu"), theirs(x).relu(), rtol=1e-4, atol=1e-5)
    assert own.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own.eval()(x, "relu"), theirs.eval()(x).relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_normalize_gives_the_same_whichever_norm_it_gets(activation):
    x = torch.randn(4, 8, 5, 5).to(memory_format=torch.channels_last)
    ours, theirs = layers.BatchNorm2d(8), nn.BatchNorm2d(8)
    actual, expected = (layers.norm.normalize(n, x, activation) for n in (ours, theirs))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_refuses_the_wrong_number_of_dimensions_as_torch_does():
    with pytest.raises(ValueError, match="expected 4D"):
        layers.BatchNorm2d(8)(torch.randn(4, 8))
