"""A convolution and its batch norm are one linear layer, and a norm can be told to give what was fitted."""

import convolutions
import pytest
import torch
from torch import nn

from separable.conversion.folded import folded_weight, scale_of, set_norm
from separable.conversion.patches import output_rows, patch_rows

pytestmark = pytest.mark.usefixtures("one_thread")

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def used(norm):
    """With statistics and constants as after training."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 3)
        if norm.affine:
            norm.weight.normal_()
            norm.bias.normal_()
    return norm.eval()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("case", ["plain", "groups", "no bias", "1-D", "3-D", "transposed, groups"])
def test_folding_a_norm_changes_no_output(case, affine):
    conv, x = convolutions.build(case)
    norm = used(NORMS[len(conv.kernel_size)](conv.out_channels, affine=affine, dtype=torch.float64))
    weight, bias = folded_weight(conv, norm)
    y = torch.einsum("pgck,gock->pgo", patch_rows(conv, x, None), weight).flatten(1) + bias
    torch.testing.assert_close(y, output_rows(norm(conv(x)), None))


def test_without_a_norm_the_layer_is_its_own():
    conv, _ = convolutions.build("no bias")
    weight, bias = folded_weight(conv, None)
    assert torch.equal(weight.flatten(), conv.weight.flatten())
    assert not bias.any()


def test_the_scale_of_a_norm_is_what_a_channel_is_multiplied_by():
    norm = used(nn.BatchNorm2d(3, dtype=torch.float64))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(norm(x + 1) - norm(x), scale_of(norm).view(1, 3, 1, 1).expand(2, 3, 4, 4))


def test_a_norm_that_was_set_gives_its_input_and_a_constant():
    norm, x = nn.BatchNorm2d(4, dtype=torch.float64), torch.randn(8, 4, 5, 5, dtype=torch.float64) * 3 + 2
    constant, rows = torch.randn(4, dtype=torch.float64), x.movedim(1, -1).flatten(0, -2)
    with torch.no_grad():
        set_norm(norm, rows.mean(0), rows.var(0, correction=0), constant)
    wanted = x + constant.view(1, 4, 1, 1)
    torch.testing.assert_close(norm.eval()(x), wanted)
    torch.testing.assert_close(norm.train()(x), wanted)  # the statistics are those of the data
    torch.testing.assert_close(norm.running_mean, rows.mean(0))


def test_a_channel_that_never_varies_gives_its_constant():
    norm, constant = nn.BatchNorm2d(2, dtype=torch.float64), torch.tensor([1.0, -2.0]).double()
    with torch.no_grad():
        set_norm(norm, torch.tensor([5.0, 0.0]).double(), torch.zeros(2).double(), constant)
    x = torch.tensor([5.0, 0.0]).double().view(1, 2, 1, 1).expand(3, 2, 2, 2)
    torch.testing.assert_close(norm.eval()(x), x + constant.view(1, 2, 1, 1))
