"""One layer of the converted network taken back from the dense one: which modules that is, and the network with it."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from separable.errors import InputError, first_line


def evaluation_copy(name: str, model: nn.Module) -> nn.Module:
    """The same network in modules of its own, in eval mode, on the same tensors: whatever happens to it, and whenever
    it is interrupted, the modules and the modes of `model` stay as they are, and no weight is copied.
    """
    tensors = [*model.parameters(), *model.buffers()]
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()
    except (RuntimeError, TypeError) as error:
        raise InputError(name, type(model).__name__, f"cannot be copied: {first_line(error)}") from error


@contextmanager
def swapped(network: nn.Module, dense: nn.Module, names: Sequence[str]) -> Iterator[nn.Module]:
    """`network` with the modules of these names taken from `dense`; afterwards it is as it was.

    A module that stands under several names is taken back under all of them: it is one layer that runs several times.
    """
    places: list[tuple[nn.Module, str, nn.Module | None]] = []
    for name in names:
        old, new = network.get_submodule(name), dense.get_submodule(name)
        places += [(parent, key, new) for parent in network.modules() for key, m in parent._modules.items() if m is old]
    before = [(parent, key, parent._modules[key]) for parent, key, _ in places]
    try:
        for parent, key, taken in places:
            parent._modules[key] = taken
        yield dense if "" in names else network  # the whole network is the layer
    finally:
        for parent, key, was in before:
            parent._modules[key] = was


def read_layers(layers: Any, dense: nn.Module, converted: nn.Module) -> dict[str, list[str]]:
    """The modules that each layer takes back, by the layer's name.

    Args:
        layers: names of modules; or a mapping of a layer's name to its modules' names, where more belongs to it, as the
            batch norm that its conversion changed; None for all that differ.

    Raises:
        InputError: a name that is not in both networks, or that is none.
    """
    if layers is None:
        return differing(dense, converted)
    if isinstance(layers, str) or not isinstance(layers, (Mapping, Sequence)):
        raise InputError("layers", layers, "must be names of modules, or a mapping of names to lists of names")
    if isinstance(layers, Mapping):
        named = {str(name): [some] if isinstance(some, str) else list(some) for name, some in layers.items()}
    else:
        named = {name: [name] for name in layers}
    for modules in named.values():
        for module in modules:
            for argument, network in (("dense", dense), ("converted", converted)):
                if not _has(network, module):
                    raise InputError("layers", module, f"is the name of no module of the {argument} network")
    return named


def differing(dense: nn.Module, converted: nn.Module) -> dict[str, list[str]]:
    """What the networks do not have in common, the smallest modules that hold a difference, by the dense one's order.

    A batch norm that differs goes with the changed layer before it whose channels it has, for it was adjusted to it; a
    module without weights, such as a padding, with the changed layer after it. A layer that gives fewer channels goes
    with the changed layer after it, which reads them.
    """
    found: dict[str, list[str]] = {}
    waiting: list[str] = []
    last: tuple[str, Any] = ("", None)
    for name, module in _differing(dense, converted, "", set()):
        if isinstance(module, _BatchNorm) and last[1] is not None and _channels(last[1]) == module.num_features:
            found[last[0]].append(name)
            last = ("", None)
        elif not module.state_dict():
            waiting.append(name)
        else:
            found[name] = [*waiting, name]
            waiting, last = [], (name, module)
    return _with_readers(found, dense, converted) | {name: [name] for name in waiting}


def _with_readers(found: dict[str, list[str]], dense: nn.Module, converted: nn.Module) -> dict[str, list[str]]:
    """Layers that give fewer channels than they did joined to the next."""
    joined: dict[str, list[str]] = {}
    narrow: str | None = None
    for name, modules in found.items():
        joined.setdefault(narrow or name, []).extend(modules)
        given, was = (_given_channels(network.get_submodule(name)) for network in (converted, dense))
        narrow = (narrow or name) if given is not None and was is not None and given < was else None
    return joined


def _differing(dense: nn.Module, converted: nn.Module, name: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if id(dense) in seen:
        return
    seen.add(id(dense))
    children = dict(dense.named_children())
    if children and set(children) <= {key for key, child in converted._modules.items() if child is not None}:
        for key, child in children.items():
            yield from _differing(child, converted.get_submodule(key), f"{name}.{key}" if name else key, seen)
    elif not _equal(dense, converted):
        yield name, dense


def _equal(one: nn.Module, other: nn.Module) -> bool:
    if type(one) is not type(other) or repr(one) != repr(other):
        return False
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key]) for key in ours)


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other.to(one.device)))


def _given_channels(module: nn.Module) -> int | None:
    """By its last layer that says so."""
    return next((c for c in map(_channels, reversed(list(module.modules()))) if c is not None), None)


def _channels(module: Any) -> int | None:
    return getattr(module, "out_channels", getattr(module, "out_features", None))


def _has(network: nn.Module, name: Any) -> bool:
    try:
        network.get_submodule(name)
    except (AttributeError, TypeError):
        return False
    return True
