"""The small language between a tape and memory: convolutions, linear maps, norms, pools, sums, views.

A `Node` reads values of the tape by number and makes others. Batch norm, a layer's scale and every activation are one
kind, an affine map, so that nothing after this knows more than these few.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from separable.acceleration.tape import Call, Ref
from separable.functional import arguments
from separable.functional.arguments import Window

# Those of `functional`, and of gates and the ends of networks; the native kernels number them in this order, from 1.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **arguments.ACTIVATIONS,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
}


@dataclass(eq=False)
class Node:
    """One operation between values. Those of an accelerated operation's file know how they are laid out, others read:

    lay_out     adds its steps to a layout; None: torch runs the call, for `reason`
    is_heavy    worth entering a program for; a run of nodes that holds none such would cost more than it saves
    is_view     call: permute, reshape, split and their kin, or identity; its results are not made but shown
    border      the value by which it pads as it goes, None where it does not: see `window`
    pads_by     of a pad alone, with window.pairs: the value
    """

    lay_out: "LayOut | None"
    inputs: list[int]
    outputs: list[int]
    call: Call
    reason: str = ""
    weight: Tensor | None = None  # of a convolution [O, I/groups, kh, kw], a linear map [O, I], or [C]
    bias: Tensor | None = None
    window: Window | None = None
    kernel: tuple[int, ...] = ()
    groups: int = 1
    activation: str | None = None
    dim: int = 1
    eps: float = 0.0
    average: bool = False
    counts_padding: bool = True
    is_heavy: bool = False
    is_view: bool = False
    border: float | None = None
    pads_by: float | None = None
    merged: list[Call] = field(default_factory=list)  # calls that are part of it now

    @property
    def output(self) -> int:
        return self.outputs[0]

    @property
    def is_native(self) -> bool:
        return self.lay_out is not None

    def leave_alone(self, reason: str) -> None:
        """Give the operation back to torch."""
        self.lay_out, self.is_view, self.reason = None, False, reason


LayOut = Callable[[Any, Node], None]  # the first is a Layout


def play(call: Call, read: Callable[[int], Tensor]) -> list[Tensor]:
    """The tensors that a call of the tape makes, called again on the tensors that `read` gives by number."""
    args, kwargs = pytree.tree_map_only(Ref, lambda ref: read(ref.index), (call.args, call.kwargs))
    output = call.target(*args, **kwargs)
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
