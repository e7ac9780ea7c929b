"""What a step's fields are written with: pointers, constants, codes, as csrc/program.h has them."""

import struct

import torch
from torch import Tensor

from separable.acceleration.graph import ACTIVATIONS
from separable.acceleration.places import Memory
from separable.acceleration.shared import LINE, first_line

NULL = -1
CONSTANTS = 1 << 48  # their base
CODES: dict[str | None, int] = {None: 0, **{name: i + 1 for i, name in enumerate(ACTIVATIONS)}}


class Constants:
    """Runs of floats that never change, one after the other, each aligned to 64 bytes."""

    def __init__(self):
        self.floats, self.vectors = 0, []

    def vector(self, values: Tensor | None) -> int:
        """Their pointer."""
        if values is None:
            return NULL
        at = self.floats
        self.floats += -(-values.numel() // LINE) * LINE
        self.vectors.append((at, values.reshape(-1).float()))
        return CONSTANTS + 4 * at

    def tensor(self) -> Tensor:
        """Their values, from its first line on."""
        made = torch.zeros(self.floats + LINE, dtype=torch.float32)
        skipped = (first_line(made) - made.data_ptr()) // 4
        for at, values in self.vectors:
            made[skipped + at : skipped + at + values.numel()] = values
        return made


class Writer:
    """Pointers are real once those of the packed `weights` and `addresses` are known.

    product: 0 for float32, 1 for factors rounded to bfloat16, 2 for the same by matrix tiles, as csrc/kernels.h has it.
    """

    def __init__(self, product: int, weights: list[int] | None = None, addresses: dict[Memory, int] | None = None):
        self.product, self.constants, self.weights, self.addresses = product, Constants(), weights, addresses
        self.used, self.inside = 0, set[Memory]()  # results within a chain lie in its scratch memory

    def pointer(self, memory: Memory | None, offset: int = 0) -> int:
        if memory is None:
            return NULL
        return 0 if self.addresses is None or memory in self.inside else self.addresses[memory] + 4 * offset

    def weight(self) -> int:
        """Of the next packed weight, in the order of `Step.weights`."""
        self.used += 1
        return CONSTANTS if self.weights is None else self.weights[self.used - 1]


def rounded(value: float) -> float:
    """To float32; infinite where it is too large."""
    return torch.tensor(value, dtype=torch.float32).item()


def bits(value: float) -> int:
    return struct.unpack("<i", struct.pack("<f", rounded(value)))[0]
