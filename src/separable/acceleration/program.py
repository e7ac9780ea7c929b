"""Write steps down for the native library: a list of int64 (csrc/program.h), weights packed once, memory laid out.

`Program.run` is one call of one operator for all of its steps. Its code holds addresses: it fits this process, its
packed weights this instruction set.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from separable import _native
from separable.acceleration.choose import Choices
from separable.acceleration.fuse import settle_sums
from separable.acceleration.memory import lay_out
from separable.acceleration.operations import NUMBERS
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
    """Steps that one native call runs.

    Args:
        steps: in order; what a step reads is made before it or stands in `inputs`.
        inputs, outputs: runs of memory given from outside and handed out.
        dtype: of the factors of matrix products.
        choices: which form of a kernel to take, where there are several; without it the direct one.
        shared: where packed weights are kept and workspaces come from.
        blank: pack no weights; what comes out is only to be timed.
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
    ):
        self._shared = shared or Shared()
        product = 0 if dtype == torch.float32 else 2 if _native.has_matrix_tiles() else 1
        self.steps = steps = _shared_by_threads(steps, product)
        if choices is not None and product == 0:
            choices.choose(steps, self._alone)
        self._packed = _pack(steps, product, self._shared, blank)  # kept: the code holds their addresses
        weights = [pointer for _, pointers in self._packed for pointer in pointers]
        self.code, self.constants, self.floats, self.scratch_bytes = _write(steps, inputs, outputs, product, weights)

    def run(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Read the inputs, flat or as the steps expect them, and fill the outputs."""
        threads = torch.get_num_threads()
        workspace = self._shared.take(self._workspace_floats(threads))
        tensors = [self.constants, *inputs, *outputs]
        torch.ops.separable.program_run(self.code, workspace, self.floats, self.scratch_bytes, tensors)
        self._shared.give(workspace)

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
        packed = sum(4 * tensor.numel() for tensor, _ in self._packed)
        return self.own_bytes + packed + 4 * self._workspace_floats(torch.get_num_threads())

    @property
    def own_bytes(self) -> int:
        """What no other program can share: its code and its biases."""
        return 8 * self.code.numel() + 4 * self.constants.numel()


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


def _write(
    steps: list[Step], inputs: list[Memory], outputs: list[Memory], product: int, weights: list[int]
) -> tuple[Tensor, Tensor, int, int]:
    """The code, the constants, floats of workspace and bytes of scratch memory for each thread."""
    measures = _measure(_code(Writer(product), steps))
    for step, (units, *_) in zip(steps, measures, strict=True):
        if step.sums is not None:
            settle_sums(steps, step, units)
    measures = _measure(_code(Writer(product), steps))
    outside = {memory: (2 + i) << 48 for i, memory in enumerate((*inputs, *outputs))}
    offsets, floats = lay_out(steps, set(outside))
    addresses = {**outside, **{memory: 4 * at for memory, at in offsets.items()}}
    writer = Writer(product, weights, addresses)
    code = _code(writer, steps)
    constants = torch.zeros(writer.constants.floats + LINE, dtype=torch.float32)
    skipped = (first_line(constants) - constants.data_ptr()) // 4
    for at, values in writer.constants.vectors:
        constants[skipped + at : skipped + at + values.numel()] = values
    return code, constants, floats, -(-max((m[1] for m in measures), default=0) // 64) * 64


def _shared_by_threads(steps: list[Step], product: int) -> list[Step]:
    """Chains of fewer tiles than there are threads are run step by step, which many can share."""
    threads = torch.get_num_threads()
    if threads == 1:
        return steps
    measures = _measure(_code(Writer(product), steps))
    found: list[Step] = []
    for step, (units, *_) in zip(steps, measures, strict=True):
        found += step.parts if step.parts and step.sums is None and units < threads else [step]
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
