"""Cut a tape into native programs and the calls that torch keeps, and play them in order.

A plan holds for inputs of the shapes and strides that the tape was taken with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from separable import _native
from separable.acceleration import reference
from separable.acceleration.choose import Choices
from separable.acceleration.fuse import Fusion, settle_sums
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.lower import left_to_torch, lower
from separable.acceleration.operations.relayout import copy
from separable.acceleration.places import Memory, Place, Strides, contiguous, same_order
from separable.acceleration.program import Program
from separable.acceleration.shared import Shared
from separable.acceleration.steps import Step, as_view
from separable.acceleration.tape import Ref, Tape
from separable.inputs import own_copy


@dataclass
class Part:
    """A run of nodes that becomes one program, or one node that torch plays."""

    nodes: list[Node]
    native: bool
    steps: list[Step] = field(default_factory=list)
    exports: list[tuple[int, Place]] = field(default_factory=list)  # values that torch needs afterwards


class Plan:
    """`run(tensors)` gives the leaves of what the network returns; without `native`, all by torch's calls."""

    def __init__(
        self,
        tape: Tape,
        dtype: torch.dtype = torch.float32,
        shared: Shared | None = None,
        choices: Choices | None = None,
        native: bool = True,
    ):
        self.tape, self.dtype, self._shared, self._choices = tape, dtype, shared or Shared(), choices
        self.parts = _cut(lower(tape)) if native else [Part([left_to_torch(tape, call)], False) for call in tape.calls]
        _Laying(tape, self.parts).run()
        self._env: dict[Any, int] = {}  # slot of each value and each run of memory
        self._programs: list[Program] = []
        self._inputs = [self._slot(number) for number in tape.inputs]
        self._actions = self._compile()
        self._start: list[Any] = [None] * len(self._env)  # constants stand in their slots
        for key, slot in self._env.items():
            if isinstance(key, int):
                self._start[slot] = tape.values[key].constant
        self.structure = tape.structure
        self._results = [(self._env[v.index], None) if isinstance(v, Ref) else (None, v) for v in tape.outputs]
        self._fresh = [i for i, leaf in enumerate(tape.outputs) if self._is_made_by_the_network(leaf)]

    def _is_made_by_the_network(self, leaf: Any) -> bool:
        """Whether a result is a constant that each call of the network makes anew."""
        return (
            isinstance(leaf, Ref) and leaf.index >= self.tape.own and self.tape.values[leaf.index].constant is not None
        )

    def run(self, tensors: list[Tensor]) -> list[Any]:
        env = self._start.copy()
        for slot, tensor in zip(self._inputs, tensors, strict=True):
            env[slot] = tensor
        for action in self._actions:
            action(env)
        results = [value if slot is None else env[slot] for slot, value in self._results]
        if self._fresh:
            for i, copied in zip(self._fresh, own_copy([results[i] for i in self._fresh]), strict=True):
                results[i] = copied
        return results

    @property
    def own_bytes(self) -> int:
        """What no plan of another shape can share."""
        return sum(program.own_bytes for program in self._programs)

    @property
    def bytes_alone(self) -> int:
        """What it would take if there were no other: with its weights and one workspace."""
        return sum(program.bytes_alone for program in self._programs)

    def drop_what_made_it(self) -> None:
        """Keep what a run needs alone: weights stand packed in the programs, and the rest is only to be read."""
        if _native.path is not None:
            del self.tape, self.parts, self._env
            for program in self._programs:
                del program.steps

    def _slot(self, key: Any) -> int:
        return self._env.setdefault(key, len(self._env))

    def _compile(self) -> list[Callable[[list[Any]], None]]:
        """What each part does, and after it the forgetting of what no later part reads."""
        later = _read_later(self.parts)
        ends = self._last_readers()
        actions: list[Callable[[list[Any]], None]] = []
        for i, (part, needed) in enumerate(zip(self.parts, later, strict=True)):
            actions += self._native(part, needed) if part.native else [self._torch(part.nodes[0])]
            if done := [slot for slot, last in ends.items() if last == i]:
                actions.append(_forget(done))
        return actions

    def _last_readers(self) -> dict[int, int]:
        """The index of the last part that reads each slot; constants and outputs are read to the end."""
        ends: dict[int, int] = {}
        for i, part in enumerate(self.parts):
            ends.update((self._slot(m if m.value is None else m.value), i) for m in _read(part))
            if not part.native:
                ends.update((self._slot(number), i) for number in part.nodes[0].call.reads)
        kept = {self._slot(leaf.index) for leaf in self.tape.outputs if isinstance(leaf, Ref)}
        kept |= {
            self._slot(n) for n, value in enumerate(self.tape.values) if n in self._env and value.constant is not None
        }
        return {slot: i for slot, i in ends.items() if slot not in kept}

    def _torch(self, node: Node) -> Callable[[list[Any]], None]:
        call, fill = node.call, _filler((node.call.args, node.call.kwargs), self._slot)
        slots = [self._slot(number) for number in node.outputs]

        def play(env: list[Any]) -> None:
            args, kwargs = fill(env)
            output = call.target(*args, **kwargs)
            leaves = (output,) if isinstance(output, Tensor) else pytree.tree_leaves(output)
            for slot, leaf in zip(slots, (leaf for leaf in leaves if isinstance(leaf, Tensor)), strict=True):
                env[slot] = leaf

        return play

    def _native(self, part: Part, needed: set[Memory]) -> list[Callable[[list[Any]], None]]:
        made = dict.fromkeys(step.y for step in part.steps)
        kept = (needed | {place.memory for _, place in part.exports}) & made.keys()
        part.steps = Fusion(part.steps, kept).run()
        read = list(dict.fromkeys(m for step in part.steps for m in step.reads if m not in made))
        inputs = [m for m in read if not any(m in (step.y, step.sums) for step in part.steps)]
        outputs = [m for m in made if m in kept]
        actions: list[Callable[[list[Any]], None]] = []
        filled: dict[Memory, tuple[int, Place]] = {}
        if part.steps and _native.path is not None:
            filled = {
                place.memory: (number, place)
                for number, place in part.exports
                if place.memory in outputs and self._fills(number, place)
            }
        if part.steps:
            actions.append(self._program(part, inputs, outputs, filled))
        for number, place in part.exports:
            if filled.get(place.memory) != (number, place):
                actions.append(self._export(number, place))
        return actions

    def _fills(self, number: int, place: Place) -> bool:
        """Whether a value takes all of its memory, which can then be made in its shape and needs no view."""
        shape = self.tape.values[number].shape
        span = 1 + sum((n - 1) * s for n, s in zip(shape, place.strides, strict=True))
        return place.offset == 0 and span == math.prod(shape) == place.memory.floats

    def _program(
        self, part: Part, inputs: list[Memory], outputs: list[Memory], filled: dict[Memory, tuple[int, Place]]
    ) -> Callable[[list[Any]], None]:
        sources = [self._slot(m.value if m.value is not None else m) for m in inputs]
        targets = [self._slot(m) for m in outputs]
        if _native.path is None:
            return _by_torch(part.steps, inputs, sources, outputs, targets)
        values: list[tuple[int, int]] = []  # slots of the values that fill an output, and which
        shapes: list[tuple[tuple[int, ...], Strides]] = [((m.floats,), (1,)) for m in outputs]
        for i, memory in enumerate(outputs):
            if memory in filled:
                number, place = filled[memory]
                shapes[i] = self.tape.values[number].shape, place.strides
                values.append((self._slot(number), i))
        onednn = not self.tape.subnormal
        program = Program(part.steps, inputs, outputs, self.dtype, self._shared, self._choices, onednn=onednn)
        self._programs.append(program)
        part.steps = program.steps
        given = [
            (slot, self.tape.values[m.value]) for m, slot in zip(inputs, sources, strict=True) if m.value is not None
        ]
        expected = [(slot, value.shape, value.strides) for slot, value in given]

        def play(env: list[Any]) -> None:
            for slot, shape, strides in expected:
                if env[slot].stride() != strides or env[slot].shape != shape:
                    env[slot] = _as_planned(env[slot], shape, strides)
            made = [torch.empty_strided(shape, strides, dtype=torch.float32) for shape, strides in shapes]
            program.run([env[slot] for slot in sources], made)
            for slot, tensor in zip(targets, made, strict=True):
                env[slot] = tensor
            for slot, i in values:
                env[slot] = made[i]

        return play

    def _export(self, number: int, place: Place) -> Callable[[list[Any]], None]:
        source, target, shape = self._slot(place.memory), self._slot(number), self.tape.values[number].shape

        def play(env: list[Any]) -> None:
            env[target] = as_view(env[source], shape, place.strides, place.offset)

        return play


def _forget(slots: list[int]) -> Callable[[list[Any]], None]:
    def forget(env: list[Any]) -> None:
        for slot in slots:
            env[slot] = None

    return forget


def _as_planned(tensor: Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """The tensor in the strides that a program reads.

    Raises:
        RuntimeError: a module that is called whole gave another shape than when the network was followed.
    """
    if tensor.shape != shape:
        raise RuntimeError(f"a part of the network made {list(tensor.shape)} where it made {list(shape)} before")
    return torch.empty_strided(shape, strides, dtype=tensor.dtype).copy_(tensor)


def _by_torch(steps, inputs, sources, outputs, targets) -> Callable[[list[Any]], None]:
    """Where there is no native library: the same steps by torch."""
    for step in steps:
        if step.sums is not None:
            settle_sums(steps, step, step.batch)  # one sum an image

    def play(env: list[Any]) -> None:
        runs = {m: env[slot].as_strided((m.floats,), (1,)) for m, slot in zip(inputs, sources, strict=True)}
        reference.run(steps, runs)
        for memory, slot in zip(outputs, targets, strict=True):
            env[slot] = runs[memory]

    return play


def _filler(spec: Any, slot_of: Callable[[int], int]) -> Callable[[list[Any]], Any]:
    """A function from the values to `spec` with its Refs replaced; what holds none is given as it is."""
    if isinstance(spec, Ref):
        slot = slot_of(spec.index)
        return lambda env: env[slot]
    if isinstance(spec, dict) and spec:
        fills = {key: _filler(value, slot_of) for key, value in spec.items()}
        return lambda env: {key: fill(env) for key, fill in fills.items()}
    if isinstance(spec, (list, tuple)) and any(isinstance(leaf, Ref) for leaf in pytree.tree_leaves(spec)):
        many, kind = [_filler(value, slot_of) for value in spec], type(spec)
        return lambda env: kind([fill(env) for fill in many])
    return lambda env: spec


def _cut(nodes: list[Node]) -> list[Part]:
    """Runs of native nodes, and torch's one by one; views stand with the side that makes what they show."""
    parts: list[Part] = []
    by_torch: set[int] = set()
    made: set[int] = set()
    for node in nodes:
        made.update(node.outputs)
        views_torch = node.is_view and (node.inputs[0] in by_torch or node.inputs[0] not in made)
        native = node.is_native and not views_torch
        if not native:
            by_torch.update(node.outputs)
        if native and parts and parts[-1].native:
            parts[-1].nodes.append(node)
        else:
            parts.append(Part([node], native))
    if not any(part.native and _is_worth_it(part) for part in parts):
        return [piece for part in parts for piece in _given_back(part)]
    return [piece for part in parts for piece in ([part] if _is_worth_it(part) else _given_back(part))]


def _is_worth_it(part: Part) -> bool:
    return part.native and any(node.is_heavy for node in part.nodes)


def _given_back(part: Part) -> list[Part]:
    for node in part.nodes:
        if node.is_native and not node.is_view:
            node.leave_alone("it stands between operations that torch runs, and to enter a program costs more")
    return [Part([node], False) for node in part.nodes]


class _Laying:
    """Lays all native parts into memory, and copies what torch needs into the order that it expects."""

    def __init__(self, tape: Tape, parts: list[Part]):
        self.tape, self.parts, self.layout = tape, parts, Layout(tape)
        by_torch = {n for part in parts if not part.native for node in part.nodes for n in node.call.reads}
        self.wanted = by_torch | {leaf.index for leaf in tape.outputs if isinstance(leaf, Ref)}

    def run(self) -> None:
        for number in self.tape.inputs:
            self.layout.given(number)
        for part in self.parts:
            if not part.native:
                for number in part.nodes[0].outputs:
                    self.layout.given(number)
                continue
            self.layout.steps = []
            for node in part.nodes:
                assert node.lay_out is not None
                node.lay_out(self.layout, node)
            for number in dict.fromkeys(n for node in part.nodes for n in node.outputs):
                if number in self.wanted:
                    part.exports.append((number, self._as_torch_has_it(number)))
            part.steps = self.layout.steps

    def _as_torch_has_it(self, number: int) -> Place:
        value, place = self.tape.values[number], self.layout.places[number]
        if same_order(value.shape, place.strides, value.strides) and place.memory.value is None:
            return Place(place.memory, place.offset, value.strides)  # torch looks at strides of ones too
        span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.strides, strict=True))
        dense = span == torch.Size(value.shape).numel()
        strides = value.strides if dense else contiguous(value.shape)
        memory = Memory(torch.Size(value.shape).numel())
        return copy(self.layout, place, value.shape, strides, (memory, 0))


def _read_later(parts: list[Part]) -> list[set[Memory]]:
    """For each part, the runs of memory that parts after it read."""
    later: list[set[Memory]] = []
    needed: set[Memory] = set()
    for part in reversed(parts):
        later.append(set(needed))
        needed |= _read(part)
    return later[::-1]


def _read(part: Part) -> set[Memory]:
    """What its steps read that was made before, and what is shown to torch after them."""
    made = {step.y for step in part.steps}
    return {m for step in part.steps for m in step.reads if m not in made} | {place.memory for _, place in part.exports}
