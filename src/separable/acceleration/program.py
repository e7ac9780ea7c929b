"""Write steps down for the native library: a list of int64 (csrc/program.h), weights packed once, memory laid out.

`Program.run` is one call of one operator for all of its steps. Its code holds addresses: it fits this process, its
packed weights this instruction set.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from separable import _native
from separable.acceleration.choose import Choices
from separable.acceleration.fuse import settle_sums
from separable.acceleration.memory import lay_out
from separable.acceleration.operations import NUMBERS
from separable.acceleration.operations.onednn_conv import OneDNNConv
from separable.acceleration.places import Memory
from separable.acceleration.shared import LINE, Shared, first_line
from separable.acceleration.steps import Step
from separable.acceleration.writer import CONSTANTS, Writer
from separable.cost.subnormal import flushed

_native.operators.define("program_measure(Tensor program, Tensor(a!) measures) -> ()")
_native.operators.define("program_pack(Tensor program, Tensor[] weights, Tensor(a!) packed) -> ()")
_native.operators.define(
    "program_run(Tensor program, Tensor(a!) workspace, int floats, int scratch_bytes, Tensor(b!)[] tensors) -> ()"
)

_MEASURES = 5
_ADDRESS = 0x7FFF << 48  # the base of pointers that are addresses


class Program:
    """Steps that one native call runs; of those that oneDNN computes, what lies between them.

    Args:
        steps: in order; what a step reads is made before it or stands in `inputs`.
        inputs, outputs: runs of memory given from outside and handed out.
        dtype: of the factors of matrix products.
        choices: which form of a kernel to take, where there are several; without it the direct one.
        shared: where packed weights are kept and workspaces come from.
        blank: pack no weights; what comes out is only to be timed.
        onednn: whether a choice may fall on oneDNN, which takes no subnormal numbers for zeros.
    """

    def __init__(
        self,
        steps: list[Step],
        inputs: list[Memory],
        outputs: list[Memory],
        dtype: torch.dtype = torch.float32,
        shared: Shared | None = None,
        choices: Choices | None = None,
        blank: bool = False,
        onednn: bool = True,
    ):
        assert all(step.y_offset + step.floats_made <= step.y.floats for step in steps), "a step writes past its memory"
        self._shared = shared or Shared()
        product = 0 if dtype == torch.float32 else 2 if _native.has_matrix_tiles() else 1
        self.steps = steps = _shared_by_threads(steps, product)
        if choices is not None and product == 0:
            choices.choose(steps, self._alone, onednn)
        natives = [step for step in steps if not _is_by_onednn(step)]
        self._packed = _pack(natives, product, self._shared, blank)  # kept: the code holds their addresses
        self.scratch_bytes = _settle(steps, natives, product)
        outside = {memory: (2 + i) << 48 for i, memory in enumerate((*inputs, *outputs))}
        offsets, self.floats = lay_out(steps, set(outside))
        addresses = {**outside, **{memory: 4 * at for memory, at in offsets.items()}}
        writer = Writer(product, [pointer for _, pointers in self._packed for pointer in pointers], addresses)
        self.stages: list[Tensor | _ByOneDNN] = []  # the code of native steps, and what stands between
        for by_onednn, group in itertools.groupby(steps, _is_by_onednn):
            if by_onednn:
                self.stages += [_ByOneDNN(step, addresses, self._shared) for step in group]
            else:
                self.stages.append(_code(writer, list(group)))
        self.constants = writer.constants.tensor()

    def run(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Read the inputs, flat or as the steps expect them, and fill the outputs."""
        threads = torch.get_num_threads()
        workspace = self._shared.take(self._workspace_floats(threads))
        tensors = [self.constants, *inputs, *outputs]
        for stage in self.stages:
            if isinstance(stage, Tensor):
                torch.ops.separable.program_run.default(stage, workspace, self.floats, self.scratch_bytes, tensors)
            else:
                stage.run(workspace, tensors)
        self._shared.give(workspace)  # after an error it is left to be freed

    def _alone(self, step: Step) -> Callable[[], None]:
        """A call that runs one step of a program by itself."""
        reads = list(dict.fromkeys(step.reads))
        numbers = [torch.ones(memory.floats, dtype=torch.float32) for memory in reads]  # drawn ones would be the user's
        made = torch.empty(step.y.floats, dtype=torch.float32)
        program = Program([step], reads, [step.y], blank=True)
        return lambda: program.run(numbers, [made])

    def _workspace_floats(self, threads: int) -> int:
        return self.floats + threads * self.scratch_bytes // 4 + 2 * LINE

    @property
    def bytes_alone(self) -> int:
        """What it takes with its packed weights and a workspace."""
        packed = [tensor for tensor, _ in self._packed]
        packed += [stage.packed for stage in self.stages if isinstance(stage, _ByOneDNN)]
        floats = sum(tensor.numel() for tensor in packed) + self._workspace_floats(torch.get_num_threads())
        return self.own_bytes + 4 * floats

    @property
    def own_bytes(self) -> int:
        """What no other program can share: its code and its biases."""
        code = sum(stage.numel() for stage in self.stages if isinstance(stage, Tensor))
        return 8 * code + 4 * self.constants.numel()


class _ByOneDNN:
    """A step that oneDNN computes, from and to the memory of a program."""

    def __init__(self, step: Step, addresses: dict[Memory, int], shared: Shared):
        form = step.run_as()
        assert isinstance(form, OneDNNConv)
        self.packed = shared.packed_once(form.plain_weight(), (*form.moves, form.groups), form.pack)
        form.packed, form.weight = self.packed, None
        self._step, self._uses = form, [(memory, addresses[memory]) for memory in (*form.reads, form.y)]

    def run(self, workspace: Tensor, tensors: list[Tensor]) -> None:
        self._step.run({memory: _run_at(at, memory.floats, workspace, tensors) for memory, at in self._uses})


def _run_at(address: int, floats: int, workspace: Tensor, tensors: list[Tensor]) -> Tensor:
    """The memory that native code knows by this pointer, flat."""
    base, at = address >> 48, (address & ((1 << 48) - 1)) // 4
    if base:
        return tensors[base - 1].as_strided((floats,), (1,))
    return workspace.narrow(0, (first_line(workspace) - workspace.data_ptr()) // 4 + at, floats)


def _is_by_onednn(step: Step) -> bool:
    return isinstance(step.run_as(), OneDNNConv)


def _settle(steps: list[Step], natives: list[Step], product: int) -> int:
    """The sizes of sums, which follow from how kernels divide their work; bytes of scratch memory for each thread."""
    for step, (units, *_) in zip(natives, _measure(_code(Writer(product), natives)), strict=True):
        if step.sums is not None:
            settle_sums(steps, step, units)
    measures = _measure(_code(Writer(product), natives))
    return -(-max((m[1] for m in measures), default=0) // 64) * 64


def _pack(steps: list[Step], product: int, shared: Shared, blank: bool) -> list[tuple[Tensor, list[int]]]:
    """For each step the memory of its packed weights, and their pointers."""
    found = []
    for step, (_, _, *sizes) in zip(steps, _measure(_code(Writer(product), steps)), strict=True):
        starts, total = [], 0
        for size in filter(None, sizes):
            starts.append(total)
            total += -(-size // 64) * 64
        if starts:
            kept = torch.full((total // 4 + LINE,), float(blank), dtype=torch.float32)
            if not blank:
                code = _code(Writer(product, [CONSTANTS + start for start in starts]), [step])
                weights = [flushed(weight) for weight in step.run_as().weights()]  # a program takes them for zeros
                torch.ops.separable.program_pack(code, weights, kept)
                kept = shared.packed(kept)
            found.append((kept, [_ADDRESS + first_line(kept) + start for start in starts]))
    return found


def _shared_by_threads(steps: list[Step], product: int) -> list[Step]:
    """Chains of fewer tiles than there are threads are run step by step, which many can share."""
    threads = torch.get_num_threads()
    if threads == 1:
        return steps
    found: list[Step] = []
    for step in steps:
        apart = step.parts and step.sums is None and _measure(_code(Writer(product), [step]))[0][0] < threads
        found += step.parts if apart else [step]
    return found


def _code(writer: Writer, steps: list[Step]) -> Tensor:
    code: list[int] = []
    for step in (step.run_as() for step in steps):
        fields = step.fields(writer)
        code += [NUMBERS[step.kernel], len(fields), *fields]
    return torch.tensor(code, dtype=torch.int64)


def _measure(code: Tensor) -> list[list[int]]:
    count, at = 0, 0
    fields = code.tolist()
    while at < len(fields):
        count, at = count + 1, at + 2 + fields[at + 1]
    measures = torch.zeros(count * _MEASURES, dtype=torch.int64)
    torch.ops.separable.program_measure(code, measures)
    return measures.view(-1, _MEASURES).tolist()
