"""A copy of a call's arguments for a network to do with as it likes: it may write into its input.

Whoever runs a network twice on one tensor gives each run its own copy; the caller's tensors are never written, and each
run reads the caller's values.
"""

import copy
import dataclasses
from collections.abc import MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Values = TypeVar("Values")


def own_copy(values: Values) -> Values:
    """The same structure with tensors of its own: lists, tuples, dicts, named tuples and dataclasses, however nested.

    What is one object stays one, and views of one memory are views of one copy, at the same offsets and strides, also
    expanded ones; a copy that requires a gradient is a leaf. Anything that is no tensor and holds none is given as it
    is. Only the part of a memory that the tensors reach is copied, though all of it is reserved.

    >>> x = torch.zeros(2, 3)
    >>> whole, row = own_copy((x, x[1]))
    >>> row += 1
    >>> float(whole.sum()), float(x.sum())
    (3.0, 0.0)
    """
    with torch.no_grad():
        return _Copies().of(values)


class _Copies:
    """What was copied already, by the identity of the original."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}
        self.originals: list[Any] = []  # kept, so that no identity is given to a second object meanwhile
        self.memories: dict[int, torch.UntypedStorage] = {}

    def of(self, value: Any) -> Any:
        if id(value) not in self.objects:
            self._enter(value, self._copy(value))
        return self.objects[id(value)]

    def _enter(self, value: Any, made: Any) -> Any:
        """What can hold itself enters before it is filled."""
        self.originals.append(value)
        self.objects[id(value)] = made
        return made

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, tuple):
            return self._tuple(value)
        if isinstance(value, list):
            made = self._enter(value, copy.copy(value))
            made[:] = [self.of(item) for item in value]
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            made = self._enter(value, copy.copy(value))
            for field in dataclasses.fields(value):
                if hasattr(value, field.name):
                    _set(made, field.name, self.of(getattr(value, field.name)))
        elif isinstance(value, MutableMapping):
            made = self._enter(value, copy.copy(value))
            for key in list(value):
                made[key] = self.of(value[key])
        else:
            return value
        return made

    def _tuple(self, value: tuple) -> tuple:
        items = [self.of(item) for item in value]
        if all(item is before for item, before in zip(items, value, strict=True)):
            return value  # a torch.Size among them
        if hasattr(value, "_make"):
            return value._make(items)
        return type(value)(items)

    def _tensor(self, tensor: Tensor) -> Tensor:
        if not _is_plain(tensor):  # sparse, quantized, a class of its own: it knows how to clone itself
            return tensor.detach().clone().requires_grad_(tensor.requires_grad)
        source, item = tensor.untyped_storage(), tensor.element_size()
        memory = self.memories.get(source._cdata)
        if memory is None and _fills(tensor, source.nbytes()):  # as good as always, and faster
            made = tensor.detach().clone()
            self.memories[source._cdata] = made.untyped_storage()
            return _like(tensor, made)
        if memory is None:
            memory = self.memories[source._cdata] = torch.UntypedStorage(source.nbytes(), device=source.device)
        start = tensor.storage_offset()
        last = start + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel() and not tensor.is_meta:
            _bytes(memory)[start * item : (last + 1) * item] = _bytes(source)[start * item : (last + 1) * item]
        made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        made.set_(memory, start, tensor.shape, tensor.stride())
        made = made.conj() if tensor.is_conj() else made
        return _like(tensor, made._neg_view() if tensor.is_neg() else made)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_quantized


def _fills(tensor: Tensor, memory_bytes: int) -> bool:
    """The whole of its memory, each value once and in order: a clone of torch's has the same strides and offset."""
    if tensor.numel() * tensor.element_size() != memory_bytes or tensor.is_conj() or tensor.is_neg():
        return False
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _like(tensor: Tensor, made: Tensor) -> Tensor:
    if type(tensor) is nn.Parameter:
        return nn.Parameter(made, tensor.requires_grad)
    return made.requires_grad_() if tensor.requires_grad else made


def _bytes(memory: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=memory.device).set_(memory)


def _set(instance: Any, name: str, value: Any) -> None:
    try:
        setattr(instance, name, value)
    except dataclasses.FrozenInstanceError:
        object.__setattr__(instance, name, value)
