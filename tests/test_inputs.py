"""A copy of arguments has the caller's values, layout and aliases, and memory of its own."""

import collections
import collections.abc
import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from separable.inputs import Inputs, join, own_copy


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Record:
    value: Any
    unset: Any = dataclasses.field(init=False, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    value: Any


def layouts() -> dict[str, Tensor]:
    base = torch.arange(120.0)
    image = torch.rand(2, 3, 4, 5)
    return {
        "contiguous": image,
        "channels last": image.to(memory_format=torch.channels_last),
        "one channel": torch.rand(2, 1, 4, 5).to(memory_format=torch.channels_last),
        "transposed": image.transpose(1, 3),
        "sliced": base[7:31:3],
        "an offset in a larger memory": base[40:100].view(3, 20),
        "expanded": base[3:8].expand(4, 5),
        "overlapping": base.as_strided((4, 5), (2, 1), 9),
        "scalar": base[5],
        "empty": torch.rand(2, 0, 3),
        "whole numbers": torch.arange(6).view(2, 3),
        "conjugated": torch.rand(3, dtype=torch.complex64).conj(),
        "negated": torch.rand(3, dtype=torch.complex64).conj().imag,
        "in inference mode": torch.inference_mode()(lambda: torch.rand(2, 3))(),
        "meta": torch.empty(3, 4, device="meta").t(),
    }


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("name", layouts())
def test_a_copy_has_values_strides_and_offset_of_its_original_and_memory_of_its_own(name, mode):
    tensor = layouts()[name]
    with mode():
        copied = own_copy(tensor)
    assert (copied.shape, copied.stride(), copied.storage_offset()) == (
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
    )
    assert copied.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
    assert copied.dtype == tensor.dtype
    assert copied.device == tensor.device
    if tensor.is_meta or not tensor.numel():
        return
    assert copied.equal(tensor)
    assert copied.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_copy_requires_a_gradient_where_its_original_does(mode):
    weight = torch.rand(3, 4, requires_grad=True)
    given = [weight, weight[:, 1], weight.detach(), nn.Parameter(torch.rand(2))]
    with mode():
        copied = own_copy(given)
    assert [t.requires_grad for t in copied] == [True, True, False, True]
    assert all(t.is_leaf for t in copied)
    assert type(copied[3]) is nn.Parameter


def test_what_is_written_into_one_view_shows_in_the_others_and_not_in_the_callers():
    base = torch.zeros(4, 6)
    given = {"whole": base, "row": base[1], "column": [base[:, 2], (base.t(), base)], "flat": base.view(-1)}
    copied = own_copy(given)
    copied["column"][0].fill_(1)
    assert float(copied["whole"].sum()) == 4
    assert float(copied["row"][2]) == 1
    assert float(copied["column"][1][0].sum()) == 4
    assert float(copied["flat"].sum()) == 4
    assert copied["column"][1][1] is copied["whole"]
    assert not base.any()


@pytest.mark.parametrize("reversed_order", [False, True])
def test_views_that_reach_different_parts_of_one_memory_all_have_their_values(reversed_order):
    base = torch.rand(100)
    given = [base[10:20], base[15:60:5], base[80:90].expand(3, 10), base[:0]]
    given = given[::-1] if reversed_order else given
    for copied, tensor in zip(own_copy(given), given, strict=True):
        assert copied.equal(tensor)


@pytest.mark.parametrize(
    "build",
    [
        lambda t: [t, [t]],
        lambda t: (t, (t, 1), ()),
        lambda t: {"a": t, "b": {"c": [t]}},
        lambda t: collections.OrderedDict(a=t),
        lambda t: collections.defaultdict(list, a=[t]),
        lambda t: collections.UserDict(a=[t]),
        lambda t: Pair(t, Pair(1, t)),
        lambda t: Record(Record(t)),
        lambda t: Frozen([Frozen(t)]),
        lambda t: torch.ones(2, 3).max(0),
        lambda t: pack_sequence([t, t[:1]]),
    ],
)
def test_structures_keep_their_kind_and_every_tensor_inside_is_a_copy(build):
    tensor = torch.rand(3)
    given = build(tensor)
    before = str(given)
    copied = own_copy(given)
    assert type(copied) is type(given)
    assert str(copied) == before
    for found in tensors(copied):
        found.add_(1)
    assert str(given) == before
    assert str(copied) != before


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [value.value]
    if isinstance(value, collections.abc.Mapping):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def test_lists_that_the_network_changes_are_the_networks_own():
    given = [torch.zeros(1)]
    given.append(given)
    copied = own_copy(given)
    assert copied[1] is copied
    copied.append(1)
    assert len(given) == 2


def test_what_is_no_tensor_is_given_as_it_is():
    class Tokenizer:
        __slots__ = ("lock",)

    tokenizer, size = Tokenizer(), torch.Size([2, 3])
    copied = own_copy([tokenizer, size, "word", None, torch.float32, slice(3), Record])
    assert all(c is given for c, given in zip(copied, [tokenizer, size, "word"], strict=False))
    assert copied[2:] == ["word", None, torch.float32, slice(3), Record]


def test_a_sparse_tensor_is_copied_too():
    sparse = torch.eye(3).to_sparse()
    copied = own_copy((sparse,))[0]
    copied.values().fill_(2)
    assert float(sparse.values().sum()) == 3
    assert copied.layout is torch.sparse_coo


def test_a_small_part_of_a_large_memory_is_copied_alone():
    """A batch of a data set that stands in memory as one tensor."""
    part = torch.empty(0).set_(torch.UntypedStorage(1 << 34), 1 << 20, (2, 3))  # 16 GiB, reserved and never touched
    part.fill_(3.0)
    assert own_copy(part).equal(part)


def test_batches_are_joined_by_name_in_whatever_order_the_names_stand():
    a, b, c = torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 2.0)
    first = Inputs.of({"image": a, "rest": {"depth": b, "light": [c]}, "scale": 2})
    second = Inputs.of({"scale": 2, "rest": {"light": [c], "depth": b}, "image": a})
    assert first.kind() == second.kind()
    joined = join([first, second])
    assert joined.named["scale"] == 2
    torch.testing.assert_close(joined.named["image"], torch.zeros(4, 3))
    torch.testing.assert_close(joined.named["rest"], {"depth": torch.ones(4, 3), "light": [torch.full((4, 3), 2.0)]})


def test_batches_of_other_names_shapes_or_plain_values_are_of_other_kinds():
    x = torch.zeros(2, 3)
    many = [{"a": x, "b": x}, {"a": x, "c": x}, {"a": x, "b": x[:, :2]}, {"a": x, "b": x, "scale": 2}, (x, x), x]
    many.append({"a": x, "b": x, "scale": 3})
    assert len({Inputs.of(given).kind() for given in many}) == len(many)
    assert Inputs.of((x, [x])).kind() == Inputs.of((x[:1], [x[:1]])).kind()
