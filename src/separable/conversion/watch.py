"""See what goes through a running network: who reads what a layer gives, what it is added to, what pads its input.

Layers are seen by hooks, the functions between them by a function mode; tensors are told apart by identity. So any
model that runs can be watched, without a graph; what is not recognised is only not used.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from separable.inputs import tensors

ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
RECTIFIERS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
CONVOLUTIONS = {
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, torch.convolution,
}  # fmt: skip


class Addition(NamedTuple):
    """A followed tensor as one side of a sum, before the sum is taken: it may be in place."""

    name: str
    side: Tensor
    other: Tensor


class Readers(TorchFunctionMode):
    """Notes which functions read the tensors it was told to `follow`."""

    def __init__(self, on_addition: Callable[[Addition], None] | None = None) -> None:
        super().__init__()
        self._followed: dict[int, tuple[str, Any]] = {}  # by identity, with what forgets it when the tensor goes
        self._padded: dict[int, tuple[tuple[int, ...], Any]] = {}  # likewise
        self._padded_reads: dict[int, int] = defaultdict(int)
        self._on_addition = on_addition
        self.reads: dict[str, list[Callable]] = defaultdict(list)  # the functions that read each, in order
        self.sums: dict[str, list[str]] = defaultdict(list)  # names under which the sums are followed
        self.summed: dict[str, str] = {}  # what each was added to, where that is followed as well
        self.bare = 0  # convolutions called as functions
        self.inside = 0  # of a convolution's module

    def follow(self, name: str, tensor: Tensor) -> None:
        self._followed[id(tensor)] = (name, self._forgetting(tensor))

    def _forgetting(self, tensor: Tensor) -> Any:
        """A reference that keeps nothing in memory: a network's maps go when it is done with them, and so do notes."""
        key = id(tensor)

        def forget(reference: Any) -> None:
            for notes in (self._followed, self._padded, self._padded_reads):
                notes.pop(key, None)

        return weakref.ref(tensor, forget)

    def name_of(self, tensor: Tensor) -> str | None:
        found = self._followed.get(id(tensor))
        return None if found is None else found[0]

    def padding_of(self, tensor: Tensor) -> tuple[int, ...] | None:
        """What `tensor` was padded by with zeros, in the order of torch.nn.functional.pad."""
        found = self._padded.get(id(tensor))
        return None if found is None else found[0]

    def padded_reads(self, tensor: Tensor) -> int:
        return self._padded_reads[id(tensor)]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in CONVOLUTIONS and not self.inside:
            self.bare += 1
        read = [t for t in tensors((args, kwargs)) if id(t) in self._followed]
        summed = self._additions(func, args, kwargs)
        for addition in summed:
            if self._on_addition is not None:
                self._on_addition(addition)
        result = func(*args, **kwargs)
        if next(tensors(result), None) is not None:  # a look at the shape reads nothing
            for tensor in tensors((args, kwargs)):
                if id(tensor) in self._padded:
                    self._padded_reads[id(tensor)] += 1
            for tensor in read:
                name = self._followed[id(tensor)][0] if id(tensor) in self._followed else None
                if name is not None:
                    self.reads[name].append(func)
                    if result is tensor:  # changed in place: no longer what the layer gave
                        del self._followed[id(tensor)]
        for addition in summed:
            name = f"sum of {addition.name}"
            self.sums[addition.name].append(name)
            if len(summed) == 2:
                self.summed[addition.name] = next(a.name for a in summed if a is not addition)
            self.follow(name, result)
        self._note_padding(func, args, kwargs, result)
        return result

    def _note_padding(self, func: Callable, args: tuple, kwargs: dict, result: Any) -> None:
        if func is not F.pad or not isinstance(result, Tensor):
            return
        given = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
        pads = tuple(given["pad"])
        if given.get("mode", "constant") == "constant" and not given.get("value") and min(pads) >= 0:
            self._padded[id(result)] = (pads, self._forgetting(result))

    def _additions(self, func, args, kwargs) -> list[Addition]:
        if func not in ADDITIONS or kwargs or len(args) != 2 or not all(isinstance(a, Tensor) for a in args):
            return []
        if args[0].shape != args[1].shape or args[0] is args[1]:
            return []
        sides = ((args[0], args[1]), (args[1], args[0]))
        return [Addition(self._followed[id(a)][0], a, b) for a, b in sides if id(a) in self._followed]


@contextmanager
def hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
