"""A batch norm and the activation after it in one pass, while both stay what and where they are.

A module that holds both gets a class derived from its own, which differs in how its forward runs them. Whoever then
puts another norm there (a synchronized one, an identity where a norm was folded away) or another activation gets what
the module without it would give: nothing was moved from one into the other, so that nothing can be lost.
"""

import itertools
from typing import Any

from torch import Tensor, nn

from separable.layers import norm as norms
from separable.layers.separable import is_hooked
from separable.store.capture import is_timm_norm_act

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hard_swish",
}


_MADE: dict[Any, Any] = {}


def run_in_one_pass(module: nn.Module) -> None:
    """Derive the class of `module`, in place, where it is a Sequential of such pairs or timm's norm with activation."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        if any(_is_pair(*two) for two in itertools.pairwise(module)):
            module.__class__ = _derived(_Sequence, type(module))
    elif is_norm_with_activation(module):
        module.__class__ = _derived(_NormAct, type(module))


def is_norm_with_activation(module) -> bool:
    """timm's, with an activation that ours computes and no dropout between."""
    if not is_timm_norm_act(module):
        return False
    known = type(module.act) in (nn.Identity, *ACTIVATIONS) and isinstance(module.drop, nn.Identity)
    return known and not is_hooked(module.act) and not is_hooked(module.drop)


def _is_pair(norm: Any, activation: Any) -> bool:
    if not isinstance(norm, norms.OURS) or type(activation) not in ACTIVATIONS:
        return False
    return not is_hooked(norm) and not is_hooked(activation)


class _Derived:
    """Copies and pickles as a module of the class it is derived from that is derived again."""

    base: type[nn.Module]
    way: "type[_Derived]"

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        return _empty, (self.way, self.base), *reduced[2:]


class _Sequence(_Derived):
    def forward(self, input: Tensor) -> Tensor:
        modules = itertools.pairwise([*self, None])  # type: ignore[misc]
        for module, after in modules:
            if _is_pair(module, after):
                input = module(input, ACTIVATIONS[type(after)])
                next(modules)
            else:
                input = module(input)
        return input


class _NormAct(_Derived):
    def forward(self, x: Tensor) -> Tensor:
        module: Any = self
        if not is_norm_with_activation(self) or not norms.is_computed(module):
            return super().forward(x)  # type: ignore[misc]
        return norms.compute(module, x, ACTIVATIONS.get(type(module.act)))


def _derived(way: Any, base: Any) -> Any:
    """The class, one for each pair."""
    if (way, base) not in _MADE:
        about = {"base": base, "way": way, "__module__": base.__module__, "__doc__": base.__doc__}
        _MADE[way, base] = type(base.__name__, (way, base), about)
    return _MADE[way, base]


def _empty(way: type[_Derived], base: type[nn.Module]) -> Any:
    kind = _derived(way, base)
    return kind.__new__(kind)
