"""A convolution is its weight times the patches of its input, whatever its stride, dilation, groups and direction."""

import convolutions
import pytest
import torch

from separable.conversion.patches import choose, grouped_weight, output_rows, patch_rows, write_weight

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("case", convolutions.CASES)
def test_weight_times_patches_is_the_convolution(case):
    conv, x = convolutions.build(case)
    wanted = conv(x)
    y = torch.einsum("pgck,gock->pgo", patch_rows(conv, x, None), grouped_weight(conv)).flatten(1)
    y = y if conv.bias is None else y + conv.bias
    torch.testing.assert_close(y, output_rows(wanted, None), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", convolutions.CASES)
def test_patches_and_outputs_of_chosen_positions_belong_together(case):
    conv, x = convolutions.build(case)
    wanted = conv(x)
    index = choose(tuple(wanted.shape), 7, torch.Generator().manual_seed(0))
    assert len(set(zip(*(i.tolist() for i in index), strict=True))) == 7, "no position is taken twice"
    y = torch.einsum("pgck,gock->pgo", patch_rows(conv, x, index), grouped_weight(conv)).flatten(1)
    y = y if conv.bias is None else y + conv.bias
    torch.testing.assert_close(y, output_rows(wanted, index), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", convolutions.CASES)
def test_a_weight_that_is_read_and_written_back_is_the_same(case):
    conv, _ = convolutions.build(case)
    before = conv.weight.detach().clone()
    weight = grouped_weight(conv).clone()
    conv.weight.data.fill_(float("nan"))
    write_weight(conv, weight)
    assert torch.equal(conv.weight, before)


def test_all_positions_are_taken_where_more_are_wanted_than_there_are():
    assert choose((2, 5, 3, 3), 18, torch.Generator()) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_float32_at_least(dtype):
    conv, x = convolutions.build("plain", dtype)
    wanted = torch.promote_types(dtype, torch.float32)
    assert patch_rows(conv, x, None).dtype == output_rows(x, None).dtype == wanted
