"""The small language between a tape and memory: convolutions, linear maps, norms, pools, sums, views.

A `Node` reads values of the tape by number and makes others. Batch norm, a layer's scale and every activation are one
kind, `affine`, so that nothing after this knows more than these few.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from separable.acceleration.tape import Call, Ref
from separable.functional import arguments
from separable.functional.arguments import Window

# Those of `functional`, and the gates of squeeze-excite; the native kernels number them in this order, from 1.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **arguments.ACTIVATIONS,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
}


@dataclass(eq=False)
class Node:
    """One step. Which fields mean something depends on `kind`:

    conv         weight [O, I/groups, kh, kw], bias, window, groups; input [N, C, H, W]
    linear       weight [O, I], bias; maps the last dimension
    affine       x * weight + bias along `dim`, then activation; each may be missing
    norm         weight, bias or None, eps: layer norm of the last dimension
    mean         over H and W of [N, C, H, W], which stay as ones or go
    pool         window, kernel, average, counts_padding: largest or mean of each window
    add          of two values of one shape
    multiply     of two values of one shape
    scale        [N, C, H, W] times a gate [N, C, 1, 1]
    cat          along `dim`
    pad          window.pairs, value
    view         call: permute, reshape, split and their kin, or identity
    torch        call, left alone for `reason`
    """

    kind: str
    inputs: list[int]
    outputs: list[int]
    call: Call
    reason: str = ""
    weight: Tensor | None = None
    bias: Tensor | None = None
    window: Window | None = None
    kernel: tuple[int, ...] = ()
    groups: int = 1
    activation: str | None = None
    dim: int = 1
    eps: float = 0.0
    average: bool = False
    counts_padding: bool = True
    value: float = 0.0
    merged: list[Call] = field(default_factory=list)  # calls that are part of it now

    @property
    def output(self) -> int:
        return self.outputs[0]

    def leave_alone(self, reason: str) -> None:
        """Give the operation back to torch."""
        self.kind, self.reason = "torch", reason

    def is_depthwise(self) -> bool:
        """Groups of channels filtered on their own: [C*m, 1, kh, kw] makes m maps of each, [C/m, m, kh, kw] sums m."""
        return self.kind == "conv" and self.groups > 1

    def is_pointwise(self) -> bool:
        """A map of each pixel's channels: kernel and stride 1, nothing padded."""
        if self.kind != "conv" or self.groups != 1 or self.weight is None or self.window is None:
            return False
        ones = all(k == 1 for k in self.weight.shape[2:]) and all(s == 1 for s in self.window.stride)
        return ones and not any(before or after for before, after in self.window.pairs)


def play(call: Call, read: Callable[[int], Tensor]) -> list[Tensor]:
    """The tensors that a call of the tape makes, called again on the tensors that `read` gives by number."""
    args, kwargs = pytree.tree_map_only(Ref, lambda ref: read(ref.index), (call.args, call.kwargs))
    output = call.target(*args, **kwargs)
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
