"""torch.vmap over the native operators, called directly: one call for each member, results stacked.

The functions of this package take torch's own operators under vmap, which join the members into one call; this is for
a captured graph, or whoever calls torch.ops.separable.* by name. Right for every operator; nothing is joined.
"""

from collections.abc import Callable
from typing import Any

import torch

from separable import _native
from separable.functional import (  # noqa: F401 - they define the operators
    batch_norm_operator,
    depthwise_conv_operator,
    separable_conv_operator,
)

_NAMES: tuple[str, ...] = ("depthwise_conv", "depthwise_conv_inference", "depthwise_conv_backward")
_NAMES += ("separable_conv", "separable_conv_inference", "separable_conv_backward")
_NAMES += ("batch_norm", "batch_norm_backward")


def _rule(name: str) -> Callable:
    operator = getattr(torch.ops.separable, name)

    def each_member(info: Any, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
        dims = (*in_dims, *[None] * (len(args) - len(in_dims)))
        batched = [isinstance(dim, int) and isinstance(arg, torch.Tensor) for arg, dim in zip(args, dims, strict=True)]
        members = [
            operator(*(a.select(d, i) if b else a for a, d, b in zip(args, dims, batched, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(members[0], tuple):
            stacked = tuple(torch.stack(parts) for parts in zip(*members, strict=True))
            return stacked, (0,) * len(stacked)
        return torch.stack(members), 0

    return each_member


for _name in _NAMES:
    torch.library.register_vmap(f"separable::{_name}", _rule(_name), lib=_native.operators)
