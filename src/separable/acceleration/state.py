"""The Python state that a network's forward can reach, and whether it is still what it was.

A plan repeats what the network's Python did once, so it holds only as long as that Python would do the same again.
Watched are the attributes of modules and of other objects, containers, classes, the globals and closures that the code
names, hooks, and the versions of all tensors: shallow copies, compared again at each call (benchmarks/overhead.py).
Not watched are code itself, what lies outside Python (files, clocks) and numbers that torch counts no version for:
written through `.data` or numpy, or of a network made under torch.inference_mode.
"""

import collections
import dis
import enum
import functools
import logging
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils import _pytree as pytree

_NOT_THE_USERS = sys.stdlib_module_names | {"torch", "numpy", "separable"}  # whose code is taken to keep no state
_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, slice, range, enum.Enum, types.EllipsisType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
)
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, staticmethod, classmethod, property)
_CONTAINERS = (list, set, collections.deque, tuple, frozenset)
_CALLED_UNNAMED = {"forward", "__call__", "__getitem__", "__getattr__", "__iter__", "__len__", "__enter__", "__exit__"}
_OF_EVERY_MODULE = vars(nn.Module()).keys()
_MOST_OBJECTS, _MOST_BYTES = 50_000, 1 << 16
_version = attrgetter("_version")

_states: "weakref.WeakSet[State]" = weakref.WeakSet()

Found = Iterator[tuple[Any, str]]  # what a value leads to, and how it is called


def flatten(value: Any) -> tuple[list[Any], Any]:
    """The leaves and the structure of nested lists, tuples and dicts; a torch.Size stays whole, for it has no parts."""
    return pytree.tree_flatten(value, is_leaf=lambda part: isinstance(part, torch.Size))


def is_plain(value: Any) -> bool:
    """Whether it can never change: a number, a text, a dtype and their kin."""
    return isinstance(value, _PLAIN)


class _Others(NamedTuple):
    """What is watched beside dicts, lists and sets."""

    settings: list
    hooks: list | None
    types: list
    addresses: list
    versions: list
    single: list
    cells: list
    arrays: list


class State:
    """What the network's Python holds at this moment.

    Args:
        keeps_values: also of its tensors but parameters, for `restore` to put back.

    doubt: what of it cannot be watched, in words; empty where all can.
    tensors: all that were found: parameters, buffers, attributes, those that the code names.
    """

    def __init__(self, model: nn.Module, keeps_values: bool = False):
        self.doubt = ""
        self._seen: dict[int, Any] = {}  # by identity, which is a value's own as long as it is kept here
        self._live: list[Any] = []  # dicts, lists, sets
        self._names: list[str] = []  # of each of them
        self._single: list[tuple[Callable, Callable, str]] = []  # entries of classes and globals: read, write, name
        self._cells: list[types.CellType] = []
        self.tensors: list[Tensor] = []
        self._arrays: list[Any] = []
        self._mentioned, self._classes = set(_CALLED_UNNAMED), dict[type, set[str]]()
        attributes = [a for a in map(vars, model.modules()) if "training" in a]
        self._settings: list[tuple[Callable, list[str], dict[str, Any]]] = []  # of torch's own layers: getter, names
        self._hooks = [a[key] for a in attributes for key in ("_forward_pre_hooks", "_forward_hooks")]
        of_all = (torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks)
        self._reach([(model, ""), *((hooks, "the hooks of all modules") for hooks in of_all)])
        self._counting = [tensor for tensor in self.tensors if not tensor.is_inference()]  # those count no versions
        self._placed = [t for t in self.tensors if type(t) in (Tensor, nn.Parameter) and _has_memory(t)]
        self._modules = list(model.modules())
        self.is_written = False  # by an optimizer that torch counts no version for
        _states.add(self)
        own = [t for t in self._counting if keeps_values and not isinstance(t, nn.Parameter)]
        self._kept = [(tensor, tensor._version, tensor.clone()) for tensor in own]
        self._then = [copy_of(live) for live in self._live]
        self._checked = self._others()
        self._random = _random_states()

    def is_current(self) -> bool:
        """Whether everything watched is as it was."""
        try:
            return not self.is_written and self._live == self._then and self._others() == self._checked
        except Exception:  # of values that cannot be compared: they are not the same objects as before
            return False

    def change(self) -> str:
        """What the network changed since, in words: the first such thing; empty where there is none."""
        if _random_states() != self._random:
            return "it draws from the random numbers of Python or numpy"
        if self.is_current():
            return ""
        for live, then, name in zip(self._live, self._then, self._names, strict=True):
            if not _same(live, then):
                return f"it changes {_changed(live, then, name)} as it runs"
        return "it changes as it runs what its Python reads"

    def only_gained(self, is_constant: Callable[[Tensor], bool]) -> bool:
        """Whether all that changed are new entries of tensors that depend on no input: tables that it makes once."""
        for live, then in zip(self._live, self._then, strict=True):
            if _same(live, then):
                continue
            if not isinstance(live, dict) or not live.keys() >= then.keys():
                return False
            for key, value in live.items():
                if not _same([value], [then.get(key, State)]) and not (
                    then.get(key) is None
                    and all(isinstance(leaf, Tensor) and is_constant(leaf) for leaf in pytree.tree_leaves(value))
                ):
                    return False
        return self._others() == self._checked and _random_states() == self._random

    def restore(self) -> None:
        """Put back containers, names, random numbers, and the values that were kept."""
        for live, then in zip(self._live, self._then, strict=True):
            if not _same(live, then):
                _refill(live, then)
        for (_, names, attributes), (_, values) in zip(self._settings, self._checked.settings, strict=True):
            for name in {*_settings_in(attributes)} - {*names}:
                del attributes[name]
            attributes.update(zip(names, values, strict=True))
        for (read, write, name), value in zip(self._single, self._checked.single, strict=True):
            if read(name) is not value:
                write(name, value)
        for cell, value in zip(self._cells, self._checked.cells, strict=True):
            cell.cell_contents = value
        for tensor, version, values in self._kept:
            if tensor._version != version:
                tensor.copy_(values)
        random.setstate(self._random[0])
        if self._random[1:]:
            sys.modules["numpy"].random.set_state(self._random[1])

    def holds(self, value: Any) -> bool:
        """Whether the network itself keeps this very object."""
        return id(value) in self._seen

    def _others(self) -> "_Others":
        hooks = [*map(len, self._hooks)] if any(self._hooks) else None
        return _Others(
            [(len(attributes), read(attributes)) for read, _, attributes in self._settings],
            hooks,
            [*map(type, self._modules)],
            [*map(Tensor.data_ptr, self._placed)],
            [*map(_version, self._counting)],
            [read(name) for read, _, name in self._single],
            [*map(_contents, self._cells)],
            [bytes(memoryview(array).cast("B")) for array in self._arrays],
        )

    def _reach(self, pending: list[tuple[Any, str]]) -> None:
        while pending and not self.doubt:
            value, name = pending.pop()
            if not is_plain(value) and id(value) not in self._seen:
                self._seen[id(value)] = value
                pending.extend(self._within(value, name))
            if not pending:  # methods and attributes of classes count where code that was reached names them
                pending.extend(self._named_in_classes())
            if len(self._seen) > _MOST_OBJECTS:
                self.doubt = "it reaches more Python objects than can be watched"

    def _within(self, value: Any, name: str) -> Found:
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, nn.Module):
            yield from self._within_module(value, name)
        elif isinstance(value, dict):
            self._watch(value, name)
            yield from ((entry, f"{name}[{key!r}]") for key, entry in value.items())
        elif isinstance(value, _CONTAINERS):
            if not isinstance(value, (tuple, frozenset)):
                self._watch(value, name)
            yield from ((entry, name) for entry in value)
        elif isinstance(value, _FUNCTIONS):
            yield from self._within_function(value, name)
        elif isinstance(value, type):
            for base in filter(_is_the_users, value.__mro__):
                self._classes.setdefault(base, set())
        elif not isinstance(value, (types.ModuleType, logging.Logger)):
            yield from self._within_object(value, name)

    def _watch(self, container: Any, name: str) -> None:
        self._live.append(container)
        self._names.append(name)

    def _within_module(self, module: nn.Module, name: str) -> Found:
        """Attributes of torch's own layers that hold no others are settings; those of other modules may be anything."""
        attributes, prefix = vars(module), f"{name}." if name else ""
        own = not type(module).__module__.startswith("torch.")
        registered = ("_parameters", "_buffers", "_modules")
        if own or attributes.get("_modules"):
            self._watch(attributes, name)
        elif "training" in attributes:
            names = _settings_in(attributes)
            self._settings.append((itemgetter(*names), names, attributes))
        for key in registered:
            entries = attributes.get(key)
            if isinstance(entries, dict) and entries:
                self._watch(entries, name)
                yield from ((entry, f"{prefix}{entry_name}") for entry_name, entry in entries.items())
        yield from ((entry, f"{prefix}{key}") for key, entry in attributes.items() if key not in _OF_EVERY_MODULE)
        yield type(module), name

    def _within_function(self, function: Any, name: str) -> Found:
        if isinstance(function, functools.partial):
            yield from ((part, name) for part in (function.func, function.args, function.keywords))
        elif isinstance(function, types.MethodType):
            yield from ((function.__self__, name), (function.__func__, name))
        elif not isinstance(function, types.FunctionType):  # a property, a static or class method
            yield getattr(function, "fget", None) or function.__func__, name
        elif (function.__module__ or "").partition(".")[0] not in _NOT_THE_USERS:
            names = set(_names_in(function.__code__))
            self._mentioned |= names
            global_names = set(_global_names_in(function.__code__))
            for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                self._cells.append(cell)
                yield _contents(cell), free
            yield from ((defaults, name) for defaults in (function.__defaults__, function.__kwdefaults__))
            yield from self._named_in(function.__globals__, global_names, names, "")

    def _named_in(self, space: dict[str, Any], wanted: set[str], names: set[str], prefix: str) -> Found:
        """What code reads of a module by the wanted names; of a module that it imports, what it may read there."""
        for name in wanted & space.keys():
            value = space[name]
            if isinstance(value, types.ModuleType):
                if value.__name__.partition(".")[0] not in _NOT_THE_USERS and id(value) not in self._seen:
                    self._seen[id(value)] = value
                    yield from self._named_in(vars(value), names, names, f"{value.__name__}.")
                continue
            if not isinstance(value, (*_FUNCTIONS, type)):
                self._single.append((space.get, space.__setitem__, name))
            yield value, f"{prefix}{name}"

    def _named_in_classes(self) -> Found:
        for kind, done in self._classes.items():
            for name in (self._mentioned & vars(kind).keys()) - done:
                done.add(name)
                value = vars(kind)[name]
                if not isinstance(value, (*_FUNCTIONS, type)):
                    self._single.append((vars(kind).get, functools.partial(setattr, kind), name))
                yield value, f"{kind.__name__}.{name}"

    def _within_object(self, value: Any, name: str) -> Found:
        module = type(value).__module__
        if isinstance(value, (Iterator, random.Random)) or module.startswith("numpy.random"):
            self.doubt = f"{name!r}, a {type(value).__name__}, changes as it is read, which cannot be watched"
        elif _is_buffer(value):
            self._arrays.append(value)
            if memoryview(value).nbytes > _MOST_BYTES:
                self.doubt = f"{name!r} is an array of more than {_MOST_BYTES >> 10} KiB outside torch"
        elif _is_the_users(type(value)) or isinstance(value, types.SimpleNamespace):
            if hasattr(value, "__dict__"):
                self._watch(vars(value), name)
                yield from ((entry, f"{name}.{key}") for key, entry in vars(value).items())
            for slot in (s for base in type(value).__mro__ for s in _slots(base) if hasattr(value, s)):
                self._single.append((functools.partial(getattr, value), functools.partial(setattr, value), slot))
                yield getattr(value, slot), f"{name}.{slot}"
            yield type(value), name


def copy_of(container: Any) -> Any:
    """A copy that compares equal as long as the container's entries are the same objects, or equal ones."""
    return dict(container) if isinstance(container, dict) else container.copy()


def _settings_in(attributes: dict[str, Any]) -> list[str]:
    """Their names, and "training" twice, so that there are always several."""
    return ["training", "training", *(key for key in attributes if key not in _OF_EVERY_MODULE)]


def _is_the_users(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in _NOT_THE_USERS


def _is_buffer(value: Any) -> bool:
    try:
        return bool(memoryview(value).c_contiguous)
    except TypeError:
        return False


def _slots(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    return (
        () if slots == "__dict__" else (slots,) if isinstance(slots, str) else set(slots) - {"__dict__", "__weakref__"}
    )


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Every global and attribute that the code, or a function within it, names."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _global_names_in(code: types.CodeType) -> Iterator[str]:
    """Those that the code looks up in its module, and not as attributes of something."""
    for instruction in dis.get_instructions(code):
        if instruction.opname.endswith(("_GLOBAL", "_NAME")):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names_in(constant)


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta


def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Fused optimizers write where torch counts no version."""
    if any(group.get("fused") for group in optimizer.param_groups):
        written = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
        for state in list(_states):
            state.is_written |= not written.isdisjoint(map(id, state.tensors))


register_optimizer_step_post_hook(_after_step)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that was not assigned yet
        return None


def _random_states() -> list[Any]:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return [random.getstate()]
    kind, keys, *rest = numpy.random.get_state()
    return [random.getstate(), (kind, keys.tolist(), *rest)]


def _same(live: Any, then: Any) -> bool:
    try:
        return bool(live == then)
    except Exception:
        return False


def _changed(live: Any, then: Any, name: str) -> str:
    """The entry of a container that differs, in words."""
    if isinstance(live, dict):
        for key in [*live, *then]:
            if not _same([live.get(key, State)], [then.get(key, State)]):
                return f"{f'{name}.' if name else ''}{key}"
    return name or "what it holds"


def _refill(live: Any, then: Any) -> None:
    live.clear()
    if isinstance(live, (dict, set)):
        live.update(then)
    else:
        live.extend(then)
