"""Residual blocks that can go: modules that return their input plus what their layers compute.

Whether a module is one is tried, not read off its code: with all its weights and statistics zero it has to give its
input, or its input's ReLU, and the network with that in its place what it gives with the silent module. What the
network loses by that, the layers behind it take back in part: they are fitted anew to what the dense network gave,
those too that stay dense.
Source: Veit, Wilber and Belongie 2016, arXiv:1605.06431, section 4.1 (single blocks of a residual network left out).
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from separable import cost
from separable.conversion import watch
from separable.conversion.trial import equal, tried
from separable.errors import InputError
from separable.inputs import Inputs, own_copy

REMOVED = "removed"


@dataclass
class Block:
    """A module that can go. macs and params are of all that is inside, for one example."""

    name: str
    layers: tuple[str, ...]  # inside, that have options of their own, in the order in which they run
    stand_in: nn.Module = field(repr=False)
    macs: int
    params: int
    shape: tuple[int, ...]  # of its input, for the example that is counted and timed


@torch.no_grad()
def find_blocks(model: nn.Module, example: Inputs, names: Iterable[str]) -> dict[str, Block]:
    """The smallest modules around the named layers that can go, by their own names."""
    names = list(names)
    inside: dict[str, list[str]] = defaultdict(list)
    for layer in names:
        around = layer.rpartition(".")[0]
        while around:
            inside[around].append(layer)
            around = around.rpartition(".")[0]
    given = _inputs(model, example, inside)
    found: dict[str, Block] = {}
    for name in sorted(given, key=len, reverse=True):  # what is inside before what is around it
        if any(inner.startswith(f"{name}.") for inner in found):
            continue
        module, x = model.get_submodule(name), given[name]
        stand_in = _stand_in(model, name, x, example)
        if stand_in is None:
            continue
        params = sum(parameter.numel() for parameter in module.parameters())
        macs = cost.count(module, x).macs // len(example)
        found[name] = Block(name, tuple(inside[name]), stand_in, macs, params, tuple(x.shape))
    return dict(sorted(found.items(), key=lambda item: names.index(item[1].layers[0])))


def _inputs(model: nn.Module, example: Inputs, names: Iterable[str]) -> dict[str, Tensor]:
    """Of the modules that share nothing with others and are called once, with one tensor."""
    calls: dict[str, list[tuple[tuple, dict]]] = defaultdict(list)

    def note(name: str) -> Any:
        return lambda module, args, kwargs: calls[name].append((own_copy(args), kwargs))

    alone = [(name, model.get_submodule(name)) for name in names]
    handles = [
        module.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, module in alone
        if _shares_nothing(model, module)
    ]
    with watch.hooks(handles):
        example.call(model)
    return {
        name: args[0]
        for name, [(args, kwargs), *more] in calls.items()
        if not more and not kwargs and len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() > 2
    }


def _shares_nothing(model: nn.Module, module: nn.Module) -> bool:
    """Whether it stands in one place, and no layer or weight inside it in another."""
    within = set(module.modules())
    weights = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    places = 0
    for other in model.modules():
        if other in within:
            continue
        places += sum(child is module for child in other._modules.values())
        if any(child in within and child is not module for child in other._modules.values()):
            return False
        if any(id(t) in weights for t in (*other.parameters(recurse=False), *other.buffers(recurse=False))):
            return False
    return places == 1


def _stand_in(model: nn.Module, name: str, x: Tensor, example: Inputs) -> nn.Module | None:
    """What the module does when its layers add nothing; None if that is neither nothing nor a ReLU."""
    module = model.get_submodule(name)
    silent = copy.deepcopy(module)
    for tensor in (*silent.parameters(), *silent.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.zeros_like(tensor)
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)  # x may hide a ReLU, or be zero
    try:
        outputs = [silent(own_copy(given)) for given in (x, drawn)]
    except Exception:  # whatever a module does with its weights, it may fail in any way on zeros
        return None
    same, rectified = nn.Identity(), nn.ReLU()
    fits = [stand_in for stand_in in (same, rectified) if _gives(stand_in, (x, drawn), outputs)]
    if fits == [rectified] and bool((x >= 0).all()) and bool(x.any()):
        fits = [same, rectified]  # what it reads is rectified already
    expected = tried(model, example, _placing(name, silent))
    for stand_in in fits:  # others may read what the module keeps, or write into what it gives
        if equal(tried(model, example, _placing(name, stand_in)), expected):
            return stand_in.train(module.training)
    return None


def _placing(name: str, module: nn.Module) -> Callable[[nn.Module], None]:
    return lambda structure: structure.set_submodule(name, module)


def _gives(stand_in: nn.Module, given: Sequence[Tensor], outputs: Sequence[Any]) -> bool:
    return all(isinstance(o, Tensor) and torch.equal(o, stand_in(x)) for x, o in zip(given, outputs, strict=True))


def remove(network: nn.Module, blocks: Iterable[Block]) -> None:
    """Put the stand-ins in the places of blocks, in place."""
    for block in blocks:
        network.set_submodule(block.name, copy.deepcopy(block.stand_in))


def removed(blocks: Mapping[str, Block], forms: Mapping[str, str | None]) -> list[Block]:
    """The blocks whose layers have this form, by the form of each layer.

    Raises:
        InputError: a layer that is in no such block, or not with all others of it.
    """
    gone = {name for name, form in forms.items() if form == REMOVED}
    found = [block for block in blocks.values() if gone.issuperset(block.layers)]
    alone = gone - {name for block in found for name in block.layers}
    if alone:
        raise InputError("chosen", f"{min(alone)}: {REMOVED}", "goes only with all layers of a block that can go")
    return found
