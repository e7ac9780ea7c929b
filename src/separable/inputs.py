"""A caller's tensors, copied before a network that may write into them runs.

A network may normalise its input in place. Whatever runs one for its own sake (to time it, to plan for it, to compare
it), or more than once, gives it copies.
"""

import copy
import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def own_copy(arguments: T) -> T:
    """The same arguments, with copies of all tensors in nested tuples, lists, dicts and dataclasses.

    Copies have the strides and offsets of their originals. What was one tensor is one tensor, and views of one memory
    are views of one copied memory, so that writing into one shows in the others as it did. Other values stay as they
    are. Gradients are not followed back.

    >>> x = torch.zeros(4)
    >>> one, (view,) = own_copy((x, [x[2:]]))
    >>> view.fill_(1), one, x
    (tensor([1., 1.]), tensor([0., 0., 1., 1.]), tensor([0., 0., 0., 0.]))
    """
    return _copied(arguments, {}, {})


def _copied(value: Any, tensors: dict[int, Tensor], memory: dict[int, torch.UntypedStorage]) -> Any:
    if isinstance(value, Tensor):
        if id(value) not in tensors:
            tensors[id(value)] = _copy_of(value, memory)
        return tensors[id(value)]
    if isinstance(value, dict):
        made = copy.copy(value)  # keeps the class, and what a default dict makes
        made.update({key: _copied(entry, tensors, memory) for key, entry in value.items()})
        return made
    if isinstance(value, (list, tuple)):
        entries = [_copied(entry, tensors, memory) for entry in value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*entries)
        return value if isinstance(value, torch.Size) else type(value)(entries)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for field in dataclasses.fields(value):
            entry = _copied(getattr(value, field.name), tensors, memory)
            object.__setattr__(twin, field.name, entry)  # also of a frozen one
        return twin
    return value


def _copy_of(tensor: Tensor, memory: dict[int, torch.UntypedStorage]) -> Tensor:
    with torch.no_grad():
        if (
            tensor.layout is not torch.strided
            or tensor.device.type == "meta"
            or type(tensor) not in (Tensor, torch.nn.Parameter)
        ):
            return tensor.clone().requires_grad_(tensor.requires_grad)
        storage = tensor.untyped_storage()
        if storage._cdata not in memory:
            memory[storage._cdata] = storage.clone()
        made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        made.set_(memory[storage._cdata], tensor.storage_offset(), tensor.shape, tensor.stride())
    return made.requires_grad_(tensor.requires_grad)
