"""See what goes through a running network: what a layer reads and gives, who reads that, what it is added to.

Layers are seen by hooks, the functions between them by a function mode; tensors are told apart by identity. So any
model that runs can be watched, without a graph; what is not recognised is only not used.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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


class _SeenEnough(Exception):
    pass


class _Stopping(Readers):
    def on_addition(self, name: str) -> None:
        raise _SeenEnough


@torch.no_grad()
def observe(model: nn.Module, batch: Tensor, name: str, calls: int, follow: str | None = None):
    """What the layer `name` reads and gives in one pass, which ends as soon as that is known.

    Args:
        calls: how often the pass calls the layer.
        follow: the module whose output is added to something that is wanted too, the layer itself or its norm.

    Returns:
        inputs, outputs: lists of `calls` tensors; other: the other side of the addition, or None.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    readers = _Stopping()

    def keep(module, args, output):
        inputs.append(args[0])
        outputs.append(output)
        if follow is None and len(outputs) == calls:
            raise _SeenEnough
        # an in-place activation or sum may overwrite what was kept
        outputs[-1] = output.clone()
        inputs[-1] = args[0].clone()

    def mark(module, args, output):
        readers.follow(name, output)

    handles = [model.get_submodule(name).register_forward_hook(keep)]
    if follow is not None:
        handles.append(model.get_submodule(follow).register_forward_hook(mark))
    try:
        with hooks(handles), readers:
            model(batch)
    except _SeenEnough:
        pass
    return inputs, outputs, readers.others.get(name)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
