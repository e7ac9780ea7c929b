"""What a network is called with, and a copy of it for the network to do with as it likes: it may write into its input.

Whoever runs a network twice on one tensor gives each run its own copy; the caller's tensors are never written, and each
run reads the caller's values.
"""

import copy
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from separable.errors import InputError

Values = TypeVar("Values")


@dataclasses.dataclass
class Inputs:
    """What a network takes by position and by name; tensors may stand in lists, tuples and dicts within.

    >>> several = Inputs.of({"image": torch.zeros(4, 3, 8, 8), "scale": torch.ones(4)})
    >>> len(several), [list(tensor.shape) for tensor in several[:2].tensors()]
    (4, [[2, 3, 8, 8], [2]])
    """

    args: tuple[Any, ...]
    named: dict[str, Any]

    @staticmethod
    def of(given: Any) -> "Inputs":
        """A tensor is the only input, a tuple or list what is taken by position, a dict what is taken by name."""
        if isinstance(given, Inputs):
            return given
        if isinstance(given, Mapping):
            return Inputs((), dict(given))
        return Inputs(tuple(given) if isinstance(given, (tuple, list)) else (given,), {})

    def __len__(self) -> int:
        """Examples: the first dimension of the first tensor."""
        return len(self.tensors()[0])

    def __getitem__(self, rows: slice) -> "Inputs":
        """Some of the examples."""
        return self.map(lambda tensor: tensor[rows])

    def __str__(self) -> str:
        """For sentences."""
        shapes = [str(list(tensor.shape)) for tensor in self.tensors()]
        return f"tensor of shape {shapes[0]}" if len(shapes) == 1 else f"tensors of shapes {', '.join(shapes)}"

    def tensors(self) -> list[Tensor]:
        return list(tensors((self.args, self.named)))

    def kind(self) -> Hashable:
        """What is equal for batches that can be joined: names, shapes of an example's tensors, and all other values."""
        return _kind((self.args, self.named))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same with other tensors; what is no tensor stays."""
        args, named = mapped((self.args, self.named), change)
        return Inputs(args, named)

    def to(self, place: Tensor) -> "Inputs":
        """On the device of a tensor, and what is floating-point in its dtype if it is."""
        dtype = place.dtype if place.is_floating_point() else None
        return self.map(lambda tensor: tensor.to(place.device, dtype if tensor.is_floating_point() else None))

    def checked(self, argument: str, rule: str) -> "Inputs":
        """Itself, a batch: its tensors hold values, and as many examples each.

        Raises:
            InputError: no tensors, or some without a first dimension (`rule` says what is wanted); some on the meta
                device, or of another number of examples.
        """
        tensors = self.tensors()
        if not tensors or any(tensor.dim() == 0 for tensor in tensors):
            found = ", ".join(type(value).__name__ for value in (*self.args, *self.named.values())) or "nothing"
            raise InputError(argument, str(self) if tensors else found, rule)
        if any(tensor.is_meta for tensor in tensors):
            raise InputError(argument, str(self), "is on the meta device and has no values")
        if len({len(tensor) for tensor in tensors}) > 1:
            sizes = [len(tensor) for tensor in tensors]
            raise InputError(
                argument, f"inputs of {sizes} examples", "all inputs of a batch must have as many examples"
            )
        return self

    def are_finite(self) -> bool:
        return all(bool(t.isfinite().all()) for t in self.tensors() if t.is_floating_point() or t.is_complex())

    def call(self, network: Callable[..., Any]) -> Any:
        """What the network gives for a copy of its own."""
        own = own_copy(self)
        return network(*own.args, **own.named)


Example = Tensor | tuple[Any, ...] | dict[str, Any] | Inputs


def join(many: Sequence[Inputs]) -> Inputs:
    """Inputs of one kind as one batch. Tensors are joined by name or position, in whatever order the names stand.

    >>> a, b = torch.zeros(1), torch.ones(1)
    >>> join([Inputs.of({"a": a, "b": b}), Inputs.of({"b": b, "a": a})]).named
    {'a': tensor([0., 0.]), 'b': tensor([1., 1.])}
    """
    args, named = _joined([(inputs.args, inputs.named) for inputs in many])
    return Inputs(args, named)


def _joined(many: Sequence[Any]) -> Any:
    first = many[0]
    if isinstance(first, Tensor):
        return torch.cat(list(many))
    if isinstance(first, Mapping):
        return {name: _joined([one[name] for one in many]) for name in first}
    if isinstance(first, (tuple, list)):
        parts = [_joined(part) for part in zip(*many, strict=True)]
        if isinstance(first, tuple):
            return first._make(parts) if hasattr(first, "_make") else tuple(parts)
        return parts
    return first


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.shape[1:]
    if isinstance(value, Mapping):
        return frozenset((name, _kind(part)) for name, part in value.items())
    return tuple(map(_kind, value)) if isinstance(value, (tuple, list)) else repr(value)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same lists, tuples and dicts with other tensors; what is no tensor stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(part, change) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [mapped(part, change) for part in value]
        if isinstance(value, tuple):
            return value._make(parts) if hasattr(value, "_make") else tuple(parts)
        return parts
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """Those in lists, tuples and dicts, however nested, in the order of `mapped`."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(part)


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
