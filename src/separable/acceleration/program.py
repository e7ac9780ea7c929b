"""Write steps down for the native library: a list of int64 (csrc/program.h), weights packed once, memory laid out.

`Program.run` is one call of one operator for all of its steps. Its code holds addresses: it fits this process, its
packed weights this instruction set.
"""

import struct

import torch
from torch import Tensor

from separable import _native
from separable.acceleration.fuse import parameters, settle_sums
from separable.acceleration.graph import ACTIVATIONS
from separable.acceleration.memory import lay_out
from separable.acceleration.shared import LINE, Shared, first_line
from separable.acceleration.steps import Memory, Step

_native.operators.define("program_measure(Tensor program, Tensor(a!) measures) -> ()")
_native.operators.define("program_pack(Tensor program, Tensor[] weights, Tensor(a!) packed) -> ()")
_native.operators.define(
    "program_run(Tensor program, Tensor(a!) workspace, int floats, int scratch_bytes, Tensor(b!)[] tensors) -> ()"
)

_KINDS = ("depthwise", "dense", "pointwise", "separable", "elementwise", "layer_norm", "pool", "relayout")
_MEASURES, _WEIGHTS = 5, 3
_NULL = -1
_ADDRESS = 0x7FFF << 48  # the base of pointers that are addresses
_FEW_FACTORS = 64  # of a sum, as a stem's on three channels: rounding them saves nothing
# Of a product such as squeeze-excite's: it takes no time, and its rounding comes back in every pixel that it scales.
# Kept in float32, MobileNetV3-Large lies 0.8 % from float32 (benchmarks/networks.py), rounded nearly twice as far.
_FEW_ROWS, _SMALL_WEIGHT = 16, 2**19
_CODES: dict[str | None, int] = {None: 0, **{name: i + 1 for i, name in enumerate(ACTIVATIONS)}}


class Program:
    """Steps that one native call runs.

    Args:
        steps: in order; what a step reads is made before it or stands in `inputs`.
        inputs, outputs: runs of memory given from outside and handed out.
        dtype: of the factors of matrix products.
        shared: where packed weights are kept and workspaces come from.
    """

    def __init__(
        self,
        steps: list[Step],
        inputs: list[Memory],
        outputs: list[Memory],
        dtype: torch.dtype = torch.float32,
        shared: Shared | None = None,
    ):
        self._shared = shared or Shared()
        product = 0 if dtype == torch.float32 else 2 if _native.has_matrix_tiles() else 1
        self.steps = steps = _shared_by_threads(steps, product)
        self._packed = _pack(steps, product, self._shared)  # kept: the code holds their addresses
        weights = [pointer for _, pointers in self._packed for pointer in pointers]
        self.code, self.constants, self.floats, self.scratch_bytes = _write(steps, inputs, outputs, product, weights)

    def run(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Read the inputs, flat or as the steps expect them, and fill the outputs."""
        threads = torch.get_num_threads()
        workspace = self._shared.take(self._workspace_floats(threads))
        tensors = [self.constants, *inputs, *outputs]
        torch.ops.separable.program_run(self.code, workspace, self.floats, self.scratch_bytes, tensors)
        self._shared.give(workspace)

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


class _Constants:
    """Runs of floats that never change, one after the other, each aligned to 64 bytes."""

    def __init__(self):
        self.floats, self.vectors = 0, []

    def reserve(self, floats: int) -> int:
        """The pointer of that many floats."""
        at = self.floats
        self.floats += -(-floats // LINE) * LINE
        return (1 << 48) + 4 * at

    def vector(self, values: Tensor | None) -> int:
        if values is None:
            return _NULL
        pointer = self.reserve(values.numel())
        self.vectors.append(((pointer & ((1 << 48) - 1)) // 4, values.reshape(-1).float()))
        return pointer


class _Writer:
    """Fields of each step; pointers are real once those of the packed `weights` and `addresses` are known.

    product: 0 for float32, 1 for factors rounded to bfloat16, 2 for the same by matrix tiles, as csrc/kernels.h has it.
    """

    def __init__(self, product: int, weights: list[int] | None = None, addresses: dict[Memory, int] | None = None):
        self.product, self.constants, self.weights, self.addresses = product, _Constants(), weights, addresses
        self.used, self.inside = 0, set[Memory]()  # results within a chain lie in its scratch memory

    def pointer(self, memory: Memory | None, offset: int = 0) -> int:
        if memory is None:
            return _NULL
        return 0 if self.addresses is None or memory in self.inside else self.addresses[memory] + 4 * offset

    def weight(self) -> int:
        self.used += 1
        return 1 << 48 if self.weights is None else self.weights[self.used - 1]

    def step(self, step: Step) -> list[int]:
        kind = _kernel(step)
        fields = getattr(self, f"_{kind}")(step)
        return [_KINDS.index(kind), len(fields), *fields]

    def _depthwise(self, s: Step) -> list[int]:
        pointers = [self.pointer(s.x, s.x_offset), self.weight(), self.constants.vector(s.bias), self.pointer(s.y)]
        images = [s.batch, s.c_in, s.c_out, *s.size, *s.out]
        return [*pointers, *images, *s.kernel, *s.stride, *s.padding, *s.dilation, _CODES[s.activation]]

    def _depthwise_part(self, s: Step) -> list[int]:
        pointers = [self.weight(), self.constants.vector(s.bias)]
        if s.kind == "affine":  # of one tap, on rows taken as an image of some width
            width = next(w for w in range(56, 0, -1) if s.rows % w == 0)
            size = (s.rows // width, width)
            images = [1, s.c_in, *size, *size]
        else:
            images = [s.batch, s.c_in, *s.size, *s.out]
        return [*pointers, *images, *s.kernel, *s.stride, *s.padding, *s.dilation, _CODES[s.activation]]

    def _dense(self, s: Step) -> list[int]:
        pointers = [self.pointer(s.x, s.x_offset), self.weight(), self.constants.vector(s.bias)]
        pointers += [self.pointer(s.other), self.pointer(s.y)]
        window = [*s.kernel, *s.stride, *s.padding, *s.dilation]
        small = s.c_in * s.kernel[0] * s.kernel[1] < _FEW_FACTORS
        ends = [_CODES[s.activation], int(s.activation_last), 0 if small else self.product]
        return [*pointers, s.batch, s.c_in, s.c_out, *s.size, *s.out, *s.x_strides, *window, *ends]

    def _pointwise(self, s: Step) -> list[int]:
        pointers = [self.pointer(s.x, s.x_offset), self.weight(), self.constants.vector(s.bias)]
        pointers += [self.pointer(s.gate), self.pointer(s.other), self.pointer(s.y), _NULL]
        sizes = [s.rows, s.c_in, s.c_out, s.x_stride, s.c_out, s.c_out, s.image_rows]
        small = s.rows < _FEW_ROWS and s.c_in * s.c_out < _SMALL_WEIGHT
        return [
            *pointers,
            *sizes,
            _CODES[s.activation],
            int(s.activation_last),
            int(s.normalize),
            0 if small else self.product,
            _bits(s.eps),
        ]

    def _separable(self, s: Step) -> list[int]:
        parts = s.parts or [s]
        first, last, self.inside = parts[0], parts[-1], {part.y for part in parts[:-1]}
        deep = next((part for part in parts if part.kind != "pointwise"), None)
        absent = [_NULL] * 7 + [0] * 12
        expand = self._pointwise(first) if first.kind == "pointwise" else absent
        if deep is not None:
            depthwise = self._depthwise_part(deep)
        else:  # its sizes say how the rows lie: as one image of one column
            depthwise = [_NULL, _NULL, 1, first.c_out, first.rows, 1, first.rows, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0]
        project = self._pointwise(last) if last.kind == "pointwise" else absent
        pointers = [self.pointer(s.x, s.x_offset), self.pointer(s.y), self.pointer(s.sums)]
        return [*pointers, *expand, *depthwise, *project]

    def _elementwise(self, s: Step) -> list[int]:
        if s.weight is not None:
            scale, image_rows = self.constants.vector(s.weight), s.rows
        else:
            scale, image_rows = self.pointer(s.gate), s.image_rows or s.rows
        pointers = [self.pointer(s.x, s.x_offset), scale, self.pointer(s.other), self.pointer(s.y)]
        return [*pointers, s.rows, s.c_in, image_rows, _CODES[s.activation]]

    def _layer_norm(self, s: Step) -> list[int]:
        weight, bias = self.constants.vector(s.weight), self.constants.vector(s.bias)
        return [self.pointer(s.x, s.x_offset), weight, bias, self.pointer(s.y), s.rows, s.c_in, _bits(s.eps)]

    def _pool(self, s: Step) -> list[int]:
        images = [s.batch, s.c_in, *s.size, *s.out, *s.kernel, *s.stride, *s.padding]
        return [self.pointer(s.x, s.x_offset), self.pointer(s.y), *images, int(s.average), _bits(s.factor)]

    def _relayout(self, s: Step) -> list[int]:
        missing = 6 - len(s.sizes)
        sizes, x_strides, y_strides = [1] * missing, [0] * missing, [0] * missing
        pointers = [self.pointer(s.x, s.x_offset), self.pointer(s.y, s.y_offset)]
        return [*pointers, *sizes, *s.sizes, *x_strides, *s.x_strides, *y_strides, *s.y_strides]


def _pack(steps: list[Step], product: int, shared: Shared) -> list[tuple[Tensor, list[int]]]:
    """For each step the memory of its packed weights, and their pointers."""
    found = []
    for step, (_, _, *sizes) in zip(steps, _measure(_code(_Writer(product), steps)), strict=True):
        starts, total = [], 0
        for size in filter(None, sizes):
            starts.append(total)
            total += -(-size // 64) * 64
        if starts:
            made = torch.zeros(total // 4 + LINE, dtype=torch.float32)
            code = _code(_Writer(product, [(1 << 48) + start for start in starts]), [step])
            torch.ops.separable.program_pack(code, _weights(step), made)
            kept = shared.packed(made)
            found.append((kept, [_ADDRESS + first_line(kept) + start for start in starts]))
    return found


def _write(
    steps: list[Step], inputs: list[Memory], outputs: list[Memory], product: int, weights: list[int]
) -> tuple[Tensor, Tensor, int, int]:
    """The code, the constants, floats of workspace and bytes of scratch memory for each thread."""
    measures = _measure(_code(_Writer(product), steps))
    for step, (units, *_) in zip(steps, measures, strict=True):
        if step.sums is not None:
            settle_sums(steps, step, units)
    measures = _measure(_code(_Writer(product), steps))
    outside = {memory: (2 + i) << 48 for i, memory in enumerate((*inputs, *outputs))}
    offsets, floats = lay_out(steps, set(outside))
    addresses = {**outside, **{memory: 4 * at for memory, at in offsets.items()}}
    writer = _Writer(product, weights, addresses)
    code = _code(writer, steps)
    constants = torch.zeros(writer.constants.floats + LINE, dtype=torch.float32)
    skipped = (first_line(constants) - constants.data_ptr()) // 4
    for at, values in writer.constants.vectors:
        constants[skipped + at : skipped + at + values.numel()] = values
    return code, constants, floats, -(-max((m[1] for m in measures), default=0) // 64) * 64


def _kernel(step: Step) -> str:
    """Which kernel computes it. The one that multiplies and adds channel by channel is a depthwise one of one tap."""
    if step.kind == "affine" and step.bias is not None:
        return "separable"
    if step.kind == "depthwise" and step.c_in == step.c_out:
        return "separable"
    others = {"norm": "layer_norm", "affine": "elementwise", "add": "elementwise"}
    return {**others, "scale": "elementwise"}.get(step.kind, step.kind)


def _shared_by_threads(steps: list[Step], product: int) -> list[Step]:
    """Chains of fewer tiles than there are threads are run step by step, which many can share."""
    threads = torch.get_num_threads()
    if threads == 1:
        return steps
    measures = _measure(_code(_Writer(product), steps))
    found: list[Step] = []
    for step, (units, *_) in zip(steps, measures, strict=True):
        found += step.parts if step.parts and step.sums is None and units < threads else [step]
    return found


def _weights(step: Step) -> list[Tensor]:
    """What is packed: the maps' weights, and an affine step's where a depthwise kernel computes it."""
    if step.kind == "affine" and step.bias is not None:
        return [torch.ones(step.c_in, dtype=torch.float32) if step.weight is None else step.weight.contiguous()]
    return parameters(step)


def _code(writer: _Writer, steps: list[Step]) -> Tensor:
    return torch.tensor([number for step in steps for number in writer.step(step)], dtype=torch.int64)


def _measure(code: Tensor) -> list[list[int]]:
    count, at = 0, 0
    fields = code.tolist()
    while at < len(fields):
        count, at = count + 1, at + 2 + fields[at + 1]
    measures = torch.zeros(count * _MEASURES, dtype=torch.int64)
    torch.ops.separable.program_measure(code, measures)
    return measures.view(-1, _MEASURES).tolist()


def _bits(value: float) -> int:
    return struct.unpack("<i", struct.pack("<f", value))[0]
