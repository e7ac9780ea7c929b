"""Copies of arguments are what their originals were, and share nothing with them."""

import dataclasses
from collections import OrderedDict, defaultdict, namedtuple

import pytest
import torch

from separable.inputs import own_copy

Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    name: str


def storages(*tensors):
    return [tensor.untyped_storage().data_ptr() for tensor in tensors]


@pytest.mark.parametrize("inference", [False, True])
def test_nested_arguments_keep_their_structure_and_share_nothing(inference):
    with torch.inference_mode(inference):
        x, y = torch.randn(2, 3), torch.randn(3)
        given = (x, [y, {"k": Pair(x, 1)}], OrderedDict(a=x), defaultdict(list, b=[y]), Frozen(y, "n"), None, x.shape)
        made = own_copy(given)
        assert [type(part) for part in made] == [type(part) for part in given]
        assert type(made[1][1]["k"]) is Pair
        assert made[0] is made[1][1]["k"].a is made[2]["a"]
        assert made[1][0] is made[3]["b"][0] is made[4].x
        assert made[3]["new"] == []
        assert torch.equal(made[0], x)
        assert not set(storages(made[0], made[1][0])) & set(storages(x, y))
        made[0].zero_()
        assert x.any()


def test_views_of_one_memory_stay_so():
    memory = torch.randn(40)
    given = [memory[4:24].view(4, 5).t(), memory[10:], memory[:1].expand(7), memory]
    made = own_copy(given)
    for copied, tensor in zip(made, given, strict=True):
        assert (copied.stride(), copied.storage_offset()) == (tensor.stride(), tensor.storage_offset())
        assert torch.equal(copied, tensor)
    assert len(set(storages(*made))) == 1
    made[3].fill_(2)
    assert all((copied == 2).all() for copied in made)
    assert not (memory == 2).any()


def test_what_requires_a_gradient_still_does():
    x = torch.randn(3, requires_grad=True)
    copied = own_copy({"x": x})["x"]
    assert copied.requires_grad
    assert copied.is_leaf
    assert own_copy((x * 2,))[0].requires_grad


def test_other_layouts_and_devices():
    sparse, meta = torch.eye(3).to_sparse(), torch.empty(2, 3, device="meta")
    assert torch.equal(own_copy([sparse])[0].to_dense(), torch.eye(3))
    assert own_copy([meta])[0].shape == (2, 3)
