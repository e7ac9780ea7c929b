"""One call of an accelerated network: its arguments, and all that its plan may depend on."""

from typing import Any

import torch
from torch import Tensor, nn

from separable import _native
from separable.acceleration.state import flatten, is_plain
from separable.acceleration.tape import storage_of


class Invocation:
    """One call's arguments, flat, and all that its plan may depend on.

    obstacle: why the model itself must run, whatever was planned.
    key: of its plan: shapes, strides, values that are no tensors, which tensors are one or share memory, global state.
    """

    def __init__(self, args: tuple, kwargs: dict[str, Any]):
        self.args, self.kwargs, self.obstacle = args, kwargs, _mode_of_torch()
        structure = None
        if not kwargs and all(type(arg) is Tensor for arg in args):  # as good as always, and much faster
            self.tensors = leaves = list(args)
        else:
            leaves, structure = flatten((args, kwargs))
            self.tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = [structure, _native.isa(), torch.get_num_threads(), *_settings_of_torch()]
        for leaf in leaves:
            if type(leaf) is Tensor or type(leaf) is nn.Parameter:
                key += (leaf.shape, leaf.stride() if leaf.layout is torch.strided else None, leaf.dtype, leaf.device)
                if leaf.is_neg():
                    self.obstacle = "an input is a negative view of other numbers"
                if leaf.layout is not torch.strided:
                    self.obstacle = f"an input is {leaf.layout}".replace("torch.", "")
            elif is_plain(leaf):
                by_text = isinstance(leaf, (float, complex, slice))  # -0.0 equals 0.0, and a slice has no hash
                key += (type(leaf), repr(leaf) if by_text else leaf)  # 1 equals True
            else:
                self.obstacle = f"an argument is a {type(leaf).__name__}, which may hold anything"
        self.memory = [*map(storage_of, self.tensors)]
        if len(set(self.memory)) < len(self.memory):
            first = {memory: i for i, memory in reversed([*enumerate(self.memory)])}
            same = {id(tensor): i for i, tensor in enumerate(self.tensors)}
            key += [(first[m], same[id(t)], t.storage_offset()) for m, t in zip(self.memory, self.tensors, strict=True)]
        self.key = tuple(key)


def _mode_of_torch() -> str:
    """What of torch's modes changes every operation, in words."""
    if torch.is_autocast_enabled("cpu"):
        return "it runs under torch.autocast"
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return "it runs under a mode of torch that may change any operation"
    return ""


def _settings_of_torch() -> tuple:
    """Global settings that a network may read, or that change what torch computes."""
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )
