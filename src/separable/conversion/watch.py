"""See what goes through a running network: what a layer reads and gives, who reads that, what it is added to.

Layers are seen by hooks, the functions between them by a function mode; tensors are told apart by identity. So any
model that runs can be watched, without a graph; what is not recognised is only not used.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from separable.inputs import own_copy

ADDITIONS = {
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.__iadd__,
}


class Readers(TorchFunctionMode):
    """Counts who reads the tensors it was told to `follow`, and which were added to a tensor of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self._followed: dict[int, tuple[str, Tensor]] = {}  # by identity; the tensor is kept so that no id returns
        self.reads: Counter[str] = Counter()
        self.added: Counter[str] = Counter()
        self.others: dict[str, Tensor] = {}  # the other side of the addition

    def follow(self, name: str, tensor: Tensor) -> None:
        self._followed[id(tensor)] = (name, tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        others = self._additions(func, args, kwargs)  # before an in-place sum overwrites one side
        result = func(*args, **(kwargs or {}))
        if isinstance(result, (Tensor, tuple, list)):
            for tensor in _tensors((args, kwargs)):
                if id(tensor) in self._followed:
                    name = self._followed[id(tensor)][0]
                    self.reads[name] += 1
                    if result is tensor:  # changed in place: no longer what the layer gave
                        del self._followed[id(tensor)]
        for name, other in others:
            self.added[name] += 1
            self.others[name] = other
            self.on_addition(name)
        return result

    def on_addition(self, name: str) -> None:
        """For a watcher that has seen enough."""

    def _additions(self, func, args, kwargs) -> list[tuple[str, Tensor]]:
        if func not in ADDITIONS or kwargs or len(args) != 2 or not all(isinstance(a, Tensor) for a in args):
            return []
        if args[0].shape != args[1].shape:
            return []
        sides = ((args[0], args[1]), (args[1], args[0]))
        found = [(self._followed[id(a)][0], b) for a, b in sides if id(a) in self._followed]
        return [(name, b.clone()) for name, b in found]


@contextmanager
def hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Seen:
    """What one layer read and gave in one pass, call after call, and what its output was added to."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    other: Tensor | None = None


class _SeenEnough(Exception):
    pass


class _Stopping(Readers):
    """Ends the pass once every layer has made its calls and every addition that was waited for has come."""

    def __init__(self, waiting: set[tuple[str, str]]):
        super().__init__()
        self.waiting = waiting

    def done(self, what: str, name: str) -> None:
        self.waiting.discard((what, name))
        if not self.waiting:
            raise _SeenEnough

    def on_addition(self, name: str) -> None:
        self.done("addition", name)


@torch.no_grad()
def observe(model: nn.Module, batch: Tensor, wanted: dict[str, tuple[int, str | None]]) -> dict[str, Seen]:
    """What layers read and give in one pass, which ends as soon as that is known.

    wanted: for the name of each layer, how often a pass calls it, and, where what its output is added to is wanted too,
    the module whose output that is, the layer itself or its norm; else None.
    """
    found = {name: Seen() for name in wanted}
    ends = {name: end for name, (_, end) in wanted.items() if end}
    readers = _Stopping({("calls", name) for name in wanted} | {("addition", name) for name in ends})

    def keep(name):
        def ran(module, args, output):
            seen = found[name]
            # copies, for an activation or a sum in place may overwrite them
            seen.inputs.append(args[0].clone())
            seen.outputs.append(output.clone())
            if len(seen.outputs) == wanted[name][0]:
                readers.done("calls", name)

        return ran

    def follow(name):
        return lambda module, args, output: readers.follow(name, output)

    handles = [model.get_submodule(end).register_forward_hook(follow(name)) for name, end in ends.items()]
    handles += [model.get_submodule(name).register_forward_hook(keep(name)) for name in wanted]
    try:
        with hooks(handles), readers:
            model(own_copy(batch))
    except _SeenEnough:
        pass
    for name, other in readers.others.items():
        found[name].other = other
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
