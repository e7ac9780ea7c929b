"""Batch norm in the convolution before it: the same function, and refused where there is none to fold."""

import pytest
import torch
from torch import nn

from separable.errors import InputError
from separable.layers import SeparableConv1d
from separable.models.folding import fold_after, fold_inside


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_convolution_and_its_norm_become_one(bias, affine):
    conv, norm = nn.Conv2d(4, 6, 3, bias=bias).double(), nn.BatchNorm2d(6, affine=affine).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    expected = norm(conv(x))
    assert isinstance(fold_after(conv, norm), nn.Identity)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("inner", [nn.BatchNorm1d, None])
def test_a_separable_layer_keeps_no_norm(inner):
    layer = SeparableConv1d(4, 6, 3, norm=nn.BatchNorm1d, inner_norm=inner, inner_activation="relu").double()
    layer(torch.randn(5, 4, 20, dtype=torch.float64))  # moves the statistics
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    expected = layer.eval()(x)
    fold_inside(layer)
    assert (layer.norm, layer.inner_norm) == (None, None)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.BatchNorm2d(6, track_running_stats=False)])
def test_other_norms_are_refused(norm):
    with pytest.raises(InputError, match="must be a batch norm that keeps running statistics"):
        fold_after(nn.Conv2d(4, 6, 3), norm)
