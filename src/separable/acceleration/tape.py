"""Follow a network once and write down every operation it runs: a flat tape that can be played again.

The tape holds for inputs of the same shapes. It is taken below autograd, where every tensor operation passes, those of
TorchScript and of custom autograd functions too, and where each says by its schema what it reads, writes and aliases.
What acts beside the tensors (hooks, Python that reads values) cannot stand on a tape: modules with hooks are kept whole
and called as they are; a network that decides by values is refused.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from separable import _native
from separable.cost.trace import ModuleStack
from separable.errors import InputError

_READS_VALUES = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal")
_READS_VALUES_IN_PYTHON = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.data_ptr, Tensor.storage)


class CannotRecordError(Exception):
    """The network, or this call of it, cannot be written down; the text is the reason, to stand in a report."""


@dataclass(frozen=True)
class Ref:
    """Stands in a call's arguments for the value of that number."""

    index: int


@dataclass
class Value:
    """A tensor as the network made it: what it looks like, and, where it depends on no input, the tensor itself."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    group: int  # values that share memory share this number
    constant: Tensor | None = None


@dataclass
class Call:
    """One operation, or one module kept whole; `target` is called with the values that stand for the Refs."""

    target: Callable
    args: Any
    kwargs: dict[str, Any]
    results: list[int | None]  # one for each leaf of the output; None for what is no tensor
    structure: Any  # of the output
    layer: str
    reads: list[int]
    writes: list[int] = field(default_factory=list)  # values written in place, as they were before
    kept_whole: str = ""  # why this is a module and not an operation

    @property
    def name(self) -> str:
        """As schemas write it, "aten::conv2d"; a module's class where it is kept whole."""
        return self.target._schema.name if not self.kept_whole else type(self.target).__name__  # type: ignore[attr-defined]


@dataclass
class Tape:
    """Values by number, calls in order; the inputs and outputs are numbers of values."""

    values: list[Value]
    calls: list[Call]
    inputs: list[int]
    outputs: list[Any]  # a Ref, or what the network returned where that is no tensor
    structure: Any  # of what the network returns
    ordered_groups: set[int]  # memory that is written while another value shows it: to be played in order, in torch


def record(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Tape:
    """The tape of `model(*args, **kwargs)`. The network runs once, hooks included.

    Raises:
        CannotRecordError: it decides by values, or uses tensors of unknown origin.
    """
    recorder = _Recorder(model)
    inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(_native.standard_operators())
        stack.enter_context(recorder.stack.watch())
        stack.enter_context(recorder.keeping_hooked_modules_whole(model))
        stack.enter_context(_NoValues(recorder))
        stack.enter_context(recorder)
        numbers = [recorder.add_input(tensor) for tensor in inputs]
        try:
            output = model(*args, **kwargs)
        except InputError as error:  # told again, where it is the caller's, when the model itself runs
            raise CannotRecordError(str(error)) from error
        leaves, structure = pytree.tree_flatten(output)
        outputs = [Ref(recorder.number_of(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    tape = Tape(recorder.values, recorder.calls, numbers, outputs, structure, set())
    tape.ordered_groups = _written_while_shown(tape)
    _fold_constants(tape, recorder.tensors)
    return tape


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.stack = ModuleStack(model)
        self.values: list[Value] = []
        self.calls: list[Call] = []
        self.tensors: dict[int, Tensor] = {}  # of values that may be constant, by number
        self._numbers = WeakTensorKeyDictionary()
        self._paused = False
        self._written_inside: list[int] = []  # by a module that is kept whole
        for tensor in (*model.parameters(), *model.buffers(), *_loose_tensors(model)):
            if tensor not in self._numbers:
                self._add(tensor, known=True)
        self._own = len(self.values)  # numbers below are the network's

    def add_input(self, tensor: Tensor) -> int:
        return self._add(tensor)

    def number_of(self, tensor: Tensor) -> int:
        number = self._numbers.get(tensor)
        if number is None:
            what = "uses a tensor that is neither an input nor a parameter, a buffer or an attribute"
            raise CannotRecordError(f"layer {self._layer()!r} {what}")
        return number

    def _add(self, tensor: Tensor, group: int | None = None, known: bool = False) -> int:
        number = len(self.values)
        strides = tuple(tensor.stride()) if tensor.layout is torch.strided else ()
        self.values.append(Value(tuple(tensor.shape), strides, tensor.dtype, number if group is None else group))
        self._numbers[tensor] = number
        if known:
            self.tensors[number] = tensor
        return number

    def _layer(self) -> str:
        return self.stack.running[-1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._paused:
            known = (self._numbers.get(tensor) for tensor in _written(func, args, kwargs))
            self._written_inside += [number for number in known if number is not None]
            return func(*args, **kwargs)
        return self._note(func, args, kwargs, lambda: func(*args, **kwargs))

    def _note(self, target: Any, args: tuple, kwargs: dict[str, Any], run: Callable, kept_whole: str = "") -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise CannotRecordError(f"layer {self._layer()!r} draws from a random generator of its own")
        operands = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        numbers = [self.number_of(tensor) for tensor in operands]
        refs = pytree.tree_map_only(Tensor, lambda t: Ref(self.number_of(t)), (args, kwargs))
        constant = all(n in self.tensors for n in numbers)
        if not kept_whole:
            self._refuse_decisions(target, args, constant)
        writes = [] if kept_whole else [self._numbers[t] for t in _written(target, args, kwargs)]
        self._keep_what_is_overwritten(writes)
        output = run()
        if kept_whole:
            writes, self._written_inside = self._written_inside, []
        leaves, structure = pytree.tree_flatten(output)
        known = constant and not kept_whole and torch.Tag.nondeterministic_seeded not in target.tags
        results: list[int | None] = []
        for leaf in leaves:
            group = self._group_shared(leaf, operands) if isinstance(leaf, Tensor) else None
            results.append(self._add(leaf, group, known) if isinstance(leaf, Tensor) else None)
        given_args, given_kwargs = refs
        call = Call(target, given_args, given_kwargs, results, structure, self._layer(), numbers, writes, kept_whole)
        self.calls.append(call)
        return output

    def _group_shared(self, result: Tensor, operands: list[Tensor]) -> int | None:
        if result.layout is not torch.strided:
            return None
        for tensor in operands:
            if result is tensor or (tensor.layout is torch.strided and torch._C._is_alias_of(result, tensor)):  # type: ignore[attr-defined]
                return self.values[self.number_of(tensor)].group
        return None

    def _keep_what_is_overwritten(self, writes: list[int]) -> None:
        """What was constant before an operation in place stays so under its old number."""
        for number in writes:
            if number < self._own:
                raise CannotRecordError(f"layer {self._layer()!r} writes a parameter or buffer as it runs")
            if number in self.tensors:
                group = self.values[number].group
                same = [n for n in self.tensors if self.values[n].group == group]
                self.tensors.update({n: self.tensors[n].clone() for n in same})

    def _refuse_decisions(self, target: Any, args: tuple, constant: bool) -> None:
        if target._schema.name == "aten::index":  # by numbers it is a lookup; by a mask its size is that of the mask
            masks = [t for t in args[1] if t is not None and t.dtype in (torch.bool, torch.uint8)]
            constant = all(self.number_of(mask) in self.tensors for mask in masks)
        dynamic = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(target.tags)
        if not constant and (dynamic or target._schema.name in _READS_VALUES):
            raise CannotRecordError(
                f"layer {self._layer()!r} decides by the values it is given ({target._schema.name})"
            )

    @contextmanager
    def keeping_hooked_modules_whole(self, model: nn.Module) -> Iterator[None]:
        """Modules with hooks run unwatched and stand on the tape as one call."""
        own = [module for module in model.modules() if _kept_whole(module)]
        try:
            for module in own:
                vars(module)["_call_impl"] = self._as_one_call(module, _kept_whole(module))
            yield
        finally:
            for module in own:
                vars(module).pop("_call_impl", None)

    def _as_one_call(self, module: nn.Module, reason: str) -> Callable:
        def call(*args, **kwargs):
            def run():
                self._paused = True
                try:
                    return type(module)._call_impl(module, *args, **kwargs)
                finally:
                    self._paused = False

            if self._paused:
                return type(module)._call_impl(module, *args, **kwargs)
            return self._note(module, args, kwargs, run, reason)

        return call


class _NoValues(TorchFunctionMode):
    """Refuses the ways of reading values that no tensor operation shows."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _READS_VALUES_IN_PYTHON and not self.recorder._paused:
            number = self.recorder.number_of(args[0])
            if number not in self.recorder.tensors:
                raise CannotRecordError(f"layer {self.recorder._layer()!r} reads values in Python ({func.__name__})")
        return func(*args, **(kwargs or {}))


def _kept_whole(module: nn.Module) -> str:
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks"
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled TorchScript"
    return "is compiled by torch.compile" if hasattr(module, "_orig_mod") else ""


def _loose_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that are plain attributes of a module, or lie in a list, tuple or dict that is one."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                leaves = pytree.tree_leaves(value) if isinstance(value, (Tensor, list, tuple, dict)) else ()
                yield from (leaf for leaf in leaves if isinstance(leaf, Tensor))


def _written(target: Any, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments that the operation's schema says it writes."""
    found = []
    for i, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
    return found


def _written_while_shown(tape: Tape) -> set[int]:
    """Groups in which a value is used after another value of the same memory was written."""
    ordered: set[int] = set()
    written: dict[int, list[tuple[int, set[int]]]] = {}  # group: (first number after the write, numbers that see it)
    for call in tape.calls:
        for number in call.reads:
            for first_after, _ in written.get(tape.values[number].group, ()):
                if number < first_after:  # made before the write and read after it
                    ordered.add(tape.values[number].group)
        for number in call.writes:
            group, made = tape.values[number].group, [r for r in call.results if r is not None]
            written.setdefault(group, []).append((min(made, default=len(tape.values)), set(made)))
    for leaf in tape.outputs:
        if isinstance(leaf, Ref):
            group = tape.values[leaf.index].group
            if any(leaf.index < first_after for first_after, _ in written.get(group, ())):
                ordered.add(group)
    return ordered


def _fold_constants(tape: Tape, tensors: dict[int, Tensor]) -> None:
    """Keep the tensors that no input reaches, and drop the calls that made them."""
    touched = {
        tape.values[w].group for call in tape.calls for w in call.writes if not all(r in tensors for r in call.reads)
    } | tape.ordered_groups
    constant = {n for n, _ in tensors.items() if tape.values[n].group not in touched}
    kept = []
    for call in tape.calls:
        made = [r for r in call.results if r is not None]
        folds = made and all(r in constant for r in made) and all(r in constant for r in call.reads)
        if not folds:
            constant -= set(made)
            kept.append(call)
    tape.calls = kept
    for number in constant:
        tape.values[number].constant = tensors[number]
