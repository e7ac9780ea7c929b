"""Follow a network through one call and write down every operation it runs: a flat tape that can be played again.

The call is the caller's own: it computes what it always does, and is never interrupted. The tape holds for inputs of
the same shapes. It is taken below autograd, where every tensor operation passes, those of TorchScript and of custom
autograd functions too, and where each says by its schema what it reads, writes and aliases. What acts beside the
tensors (hooks, Python that reads values or keeps them) cannot stand on a tape: modules with hooks are kept whole and
called as they are. A network that decides by values, or changes its own state, has no tape, and the reason is reported.
"""

from collections.abc import Callable, Iterable, Iterator
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
from separable.acceleration.state import State, flatten, is_plain
from separable.cost.subnormal import Activations, Subnormal
from separable.cost.trace import ModuleStack

_READS_VALUES = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal")
_READS_VALUES_IN_PYTHON = (
    *(Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__),
    *(Tensor.data_ptr, Tensor.storage, Tensor.untyped_storage),
)
_MOST_LOOKED_AT = 1 << 13  # numbers of a tensor, for subnormal ones; a plan takes some milliseconds more so


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
    own: int  # values of lower numbers are the network's own tensors
    ordered_groups: set[int]  # memory that is written while another value shows it: to be played in order, in torch
    subnormal: list[Subnormal] = field(default_factory=list)  # layers that made numbers for which processors are slow


@dataclass
class Followed:
    """One call of the network: what it returned, and its tape, or the reason why there is none."""

    output: Any
    tape: Tape | None
    reason: str
    has_effects: bool  # beside the output: it wrote an input, drew random numbers, or called modules kept whole


def follow(model: nn.Module, args: tuple, kwargs: dict[str, Any], state: State) -> Followed:
    """Call `model(*args, **kwargs)` and watch; `state` was taken before."""
    given, structure = flatten((args, kwargs))
    inputs = [leaf for leaf in given if isinstance(leaf, Tensor)]
    with ExitStack() as stack:
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        stack.enter_context(_native.standard_operators())
        recorder = _Recorder(model, state, inputs)
        stack.enter_context(recorder.stack.watch())
        stack.enter_context(recorder.keeping_hooked_modules_whole(model))
        stack.enter_context(_NoValues(recorder))
        stack.enter_context(recorder)
        output = model(*args, **kwargs)
    if (change := state.change()) and not state.only_gained(recorder.is_constant):
        recorder.refuse(change)
    if not _are_the_same(given, structure, (args, kwargs)):
        recorder.refuse("it writes into a list or dict that it is given")
    leaves, structure = flatten(output)
    _check_output(recorder, state, output, leaves)
    tape = None if recorder.reason else recorder.tape(leaves, structure)
    return Followed(output, tape, recorder.reason, recorder.has_effects)


def _are_the_same(leaves: list[Any], structure: Any, now: Any) -> bool:
    leaves_now, structure_now = flatten(now)
    return structure == structure_now and all(a is b for a, b in zip(leaves, leaves_now, strict=True))


def _check_output(recorder: "_Recorder", state: State, output: Any, leaves: list[Any]) -> None:
    """What is returned must be made anew by each call, or be a tensor, or never change."""
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            recorder.number_of(leaf)
        elif not is_plain(leaf):
            recorder.refuse(f"it returns an object that may hold anything ({type(leaf).__name__})")
    pending = [output]
    while pending:
        value = pending.pop()
        if isinstance(value, (list, dict)):
            if state.holds(value):
                recorder.refuse(f"it returns a {type(value).__name__} that it keeps")
            pending.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, tuple):
            pending.extend(value)


class _Recorder(TorchDispatchMode):
    """Writes down what passes, until something cannot be written down; then `reason` says what."""

    def __init__(self, model: nn.Module, state: State, inputs: list[Tensor]):
        super().__init__()
        self.stack = ModuleStack(model)
        self._activations = Activations(self.stack, most=_MOST_LOOKED_AT)
        self.reason = ""
        self.has_effects = False
        self.values: list[Value] = []
        self.calls: list[Call] = []
        self.tensors: dict[int, Tensor] = {}  # of values that may be constant, by number
        self._numbers = WeakTensorKeyDictionary()
        self._paused = False
        self._written_inside: list[int] = []  # by a module that is kept whole
        memory: dict[int, int] = {}  # group of each storage
        for tensor in state.tensors:
            group = memory.setdefault(storage_of(tensor), len(self.values))
            self._add(tensor, group, known=True)
        self._own = len(self.values)  # numbers, and groups, below are the network's
        self.inputs = [self._add_input(tensor, inputs[:i]) for i, tensor in enumerate(inputs)]

    def refuse(self, reason: str) -> None:
        self.reason = self.reason or reason

    def tape(self, leaves: list[Any], structure: Any) -> Tape:
        """The tape of what was called, which returned these leaves."""
        outputs = [Ref(self.number_of(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        made = (self.values, self.calls, self.inputs, outputs, structure)
        tape = Tape(*made, self._own, set(), self._activations.found())
        written = {self.values[number].group for call in self.calls for number in call.writes}
        tape.ordered_groups = _written_while_shown(tape) | written & {self.values[n].group for n in self.inputs}
        _fold_constants(tape, self.tensors)
        return tape

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether it depends on no input."""
        return self._numbers.get(tensor, -1) in self.tensors

    def number_of(self, tensor: Tensor) -> int:
        """The number of a value; -1 where nobody knows it, which ends the tape."""
        number = self._numbers.get(tensor)
        if number is None:
            what = "uses a tensor that is neither an input nor a parameter, a buffer or an attribute"
            self.refuse(f"layer {self._layer()!r} {what}")
            return -1
        return number

    def _add_input(self, tensor: Tensor, before: list[Tensor]) -> int:
        """An input given twice is one value; views of one memory share its group."""
        if tensor in self._numbers:
            return self._numbers[tensor]
        return self._add(tensor, self._group_shared(tensor, before))

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
        if self._paused and not self.reason:
            known = (self._numbers.get(tensor) for tensor in _written(func, args, kwargs))
            self._written_inside += [number for number in known if number is not None]
        if self._paused:
            return func(*args, **kwargs)
        return self._note(func, args, kwargs, lambda: func(*args, **kwargs))

    def _note(self, target: Any, args: tuple, kwargs: dict[str, Any], run: Callable, kept_whole: str = "") -> Any:
        """Run an operation, or a module kept whole, and write it down."""
        if self.reason:
            return run()
        leaves = pytree.tree_leaves((args, kwargs))
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):
            self.refuse(f"layer {self._layer()!r} draws from a random generator of its own")
        operands = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        numbers = [self.number_of(tensor) for tensor in operands]
        refs = pytree.tree_map_only(Tensor, lambda t: Ref(self.number_of(t)), (args, kwargs))
        constant = all(n in self.tensors for n in numbers)
        writes = [] if kept_whole else [self.number_of(t) for t in _written(target, args, kwargs)]
        random = not kept_whole and torch.Tag.nondeterministic_seeded in target.tags
        if not kept_whole and not self.reason:
            self._refuse_decisions(target, args, constant)
            self._keep_what_is_overwritten(writes)
        output = run()
        if self.reason:
            return output
        if kept_whole:
            writes, self._written_inside = self._written_inside, []
            if {self.values[n].group for n in writes} & {self.values[n].group for n in self.tensors}:
                self.refuse(f"layer {self._layer()!r} writes a parameter, a buffer or a constant as it runs")
        self.has_effects |= bool(kept_whole) or random or any(self.values[n].group in self._given for n in writes)
        leaves, structure = pytree.tree_flatten(output)
        known = constant and not kept_whole and not random
        results: list[int | None] = []
        for leaf in leaves:
            group = self._group_shared(leaf, operands) if isinstance(leaf, Tensor) else None
            results.append(self._add(leaf, group, known) if isinstance(leaf, Tensor) else None)
        given_args, given_kwargs = refs
        call = Call(target, given_args, given_kwargs, results, structure, self._layer(), numbers, writes, kept_whole)
        self.calls.append(call)
        self._look_at(leaves, () if writes else operands)
        return output

    def _look_at(self, results: Iterable[Any], given: Iterable[Any]) -> None:
        """For subnormal numbers; what that takes is no operation of the network."""
        self._paused = True
        try:
            with torch._C.DisableTorchFunction():
                self._activations.see(results, given)
        finally:
            self._paused = False

    @property
    def _given(self) -> set[int]:
        return {self.values[number].group for number in self.inputs}

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
            group = self.values[number].group
            if group < self._own:
                self.refuse(f"layer {self._layer()!r} writes a parameter or buffer as it runs")
                return
            same = [n for n in self.tensors if self.values[n].group == group]
            self.tensors.update({n: self.tensors[n].clone() for n in same})

    def _refuse_decisions(self, target: Any, args: tuple, constant: bool) -> None:
        if target._schema.name == "aten::index":  # by numbers it is a lookup; by a mask its size is that of the mask
            masks = [t for t in args[1] if t is not None and t.dtype in (torch.bool, torch.uint8)]
            constant = all(self.number_of(mask) in self.tensors for mask in masks)
        dynamic = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(target.tags)
        if not constant and (dynamic or target._schema.name in _READS_VALUES):
            self.refuse(f"layer {self._layer()!r} decides by the values it is given ({target._schema.name})")

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
    """Sees the ways of reading values that no tensor operation shows."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _READS_VALUES_IN_PYTHON and not self.recorder._paused:
            number = self.recorder.number_of(args[0])
            if number not in self.recorder.tensors:
                self.recorder.refuse(f"layer {self.recorder._layer()!r} reads values in Python ({func.__name__})")
        return func(*args, **(kwargs or {}))


def storage_of(tensor: Tensor) -> int:
    """A number that tensors share where they share memory."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _kept_whole(module: nn.Module) -> str:
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks"
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled TorchScript"
    return "is compiled by torch.compile" if hasattr(module, "_orig_mod") else ""


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
