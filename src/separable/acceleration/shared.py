"""What all plans of one network share: packed weights, and workspaces between two calls.

A plan holds for one shape, but most of its weights are packed alike for any. Equal ones are kept once, as long as a
plan uses them.
"""

import ctypes
import hashlib
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

LINE = 16  # floats in 64 bytes, where packed weights and workspaces begin


class Shared:
    """Packed weights by their content, and memory that no call is using at the moment."""

    def __init__(self) -> None:
        self._packed: weakref.WeakValueDictionary[bytes, Tensor] = weakref.WeakValueDictionary()
        self._idle: deque[Tensor] = deque()  # each call takes one or makes one

    def packed(self, made: Tensor) -> Tensor:
        """This tensor, or an equal one that is there already; both hold their values from `first_line` on."""
        return self._packed.setdefault(_digest(first_line(made), made.numel() - LINE), made)

    def packed_once(self, weight: Tensor, how: tuple, pack: Callable[[Tensor], Tensor]) -> Tensor:
        """`pack(weight)`, or what it gave before for an equal weight and the same `how`; float32, dense."""
        key = _digest(weight.data_ptr(), weight.numel()) + repr((weight.shape, how)).encode()
        found = self._packed.get(key)
        return self._packed.setdefault(key, pack(weight)) if found is None else found

    def take(self, floats: int) -> Tensor:
        """A workspace of at least so many floats; give it back after the call."""
        try:
            workspace = self._idle.pop()
        except IndexError:
            workspace = None
        if workspace is None or workspace.numel() < floats:
            with torch.inference_mode(False):  # it is written in any mode
                workspace = torch.empty(floats, dtype=torch.float32)
        return workspace

    def give(self, workspace: Tensor) -> None:
        self._idle.append(workspace)

    def trim(self) -> None:
        """Let all idle workspaces go but one: calls at once had one each."""
        while len(self._idle) > 1:
            with suppress(IndexError):  # another thread may just have taken it
                self._idle.popleft()

    @property
    def bytes(self) -> int:
        """Of all packed weights and idle workspaces."""
        return sum(4 * tensor.numel() for tensor in (*self._packed.values(), *self._idle))


def _digest(address: int, floats: int) -> bytes:
    return hashlib.blake2b((ctypes.c_char * (4 * floats)).from_address(address), digest_size=32).digest()


def first_line(tensor: Tensor) -> int:
    """The address of the first multiple of 64 bytes in a tensor."""
    return -(-tensor.data_ptr() // 64) * 64
