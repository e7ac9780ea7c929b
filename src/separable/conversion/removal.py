"""Residual blocks that can go: modules that give what they are given, but for what their layers add to it.

Whether a module is one is tried, not read off its code: with all its weights and statistics zero it has to give its
input, or its input's ReLU, which then stands in its place. What the network loses by that, the layers behind it take
back in part: they are fitted anew to what the dense network gave, those too that stay dense.
Source: Veit, Wilber and Belongie 2016, arXiv:1605.06431, section 4.1 (single blocks of a residual network left out).
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from separable import cost
from separable.conversion import watch
from separable.conversion.streams import own_structure
from separable.inputs import Inputs, own_copy

REMOVED = "remove"


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
        stand_in = _stand_in(module, x)
        if stand_in is None or not _runs(model, name, stand_in, example):
            continue
        params = sum(parameter.numel() for parameter in module.parameters())
        macs = cost.count(module, x).macs // len(example)
        found[name] = Block(name, tuple(inside[name]), stand_in, macs, params, tuple(x.shape))
    return dict(sorted(found.items(), key=lambda item: names.index(item[1].layers[0])))


def _inputs(model: nn.Module, example: Inputs, names: Iterable[str]) -> dict[str, Tensor]:
    """Of the modules that are called once, under one name, with one tensor."""
    calls: dict[str, list[tuple[tuple, dict]]] = defaultdict(list)
    owners: dict[int, int] = defaultdict(int)
    for _, module in model.named_modules(remove_duplicate=False):
        owners[id(module)] += 1

    def note(name: str) -> Any:
        return lambda module, args, kwargs: calls[name].append((own_copy(args), kwargs))

    alone = [(name, model.get_submodule(name)) for name in names]
    handles = [
        module.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, module in alone
        if owners[id(module)] == 1
    ]
    with watch.hooks(handles):
        example.call(model)
    return {
        name: args[0]
        for name, [(args, kwargs), *more] in calls.items()
        if not more and not kwargs and len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() > 2
    }


def _stand_in(module: nn.Module, x: Tensor) -> nn.Module | None:
    """What the module does when its layers add nothing; None if that is neither nothing nor a ReLU."""
    silent = copy.deepcopy(module)
    for tensor in (*silent.parameters(), *silent.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.zeros_like(tensor)
    try:
        output = silent(own_copy(x))
    except Exception:  # whatever a module does with its weights, it may fail in any way on zeros
        return None
    if not isinstance(output, Tensor) or output.shape != x.shape:
        return None
    for stand_in in (nn.Identity(), nn.ReLU()):
        if torch.equal(output, stand_in(x)):
            return stand_in.train(module.training)
    return None


def _runs(model: nn.Module, name: str, stand_in: nn.Module, example: Inputs) -> bool:
    """Whether the network runs without the module: others may read what it keeps on itself."""
    structure = own_structure(model)
    try:
        structure.set_submodule(name, stand_in)
        example.call(structure)
    except Exception:  # as above
        return False
    return True


def remove(network: nn.Module, blocks: Iterable[Block]) -> None:
    """Put the stand-ins in the places of blocks, in place."""
    for block in blocks:
        network.set_submodule(block.name, copy.deepcopy(block.stand_in))


def removed(blocks: Mapping[str, Block], forms: Mapping[str, str | None]) -> list[Block]:
    """The blocks whose layers have this form, by the form of each layer."""
    return [block for block in blocks.values() if forms.get(block.layers[0]) == REMOVED]
