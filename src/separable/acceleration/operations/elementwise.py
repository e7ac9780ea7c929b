"""Rows times and plus numbers, channel by channel, two values by an operator, activations: csrc/elementwise.h.

Batch norms, scales and activations are all one step, an affine map, and most vanish in the step before (`fuse`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations.depthwise_conv import DepthwiseConv
from separable.acceleration.operations.relayout import dense_rows, emit_rows, from_the_start, ordered
from separable.acceleration.places import channels_last, innermost_of
from separable.acceleration.steps import RowStep, Runs, Step
from separable.acceleration.tape import Ref
from separable.acceleration.writer import CODES, Writer, bits, rounded


@dataclass(eq=False)
class Elementwise(RowStep):
    """Times `weight` or `gate`, plus `other`."""

    kernel = "elementwise"
    takes_activation = True
    divides: ClassVar[bool] = False  # by `gate`, and no product
    subtracts: ClassVar[bool] = False  # `other`, and no sum
    slope: float | None = None  # of what is below 0; then all is kept within `limits`. None: neither
    limits: tuple[float, float] = (-math.inf, math.inf)

    def fields(self, writer: Writer) -> list[int]:
        if self.weight is not None:
            scale, image_rows = writer.constants.vector(self.weight), self.rows
        else:
            scale, image_rows = writer.pointer(self.gate), self.image_rows or self.rows
        pointers = [writer.pointer(self.x, self.x_offset), scale, writer.pointer(self.other), writer.pointer(self.y)]
        kinds = [CODES[self.activation], int(self.divides), int(self.subtracts), int(self.slope is not None)]
        numbers = [bits(number) for number in (self.slope or 0.0, *self.limits)]
        return [*pointers, self.rows, self.c_in, image_rows, *kinds, *numbers]

    def compute(self, runs: Runs) -> Tensor:
        return self.read_rows(runs)


@dataclass(eq=False)
class Affine(Elementwise):
    """Times `weight` and plus `bias` [C]; each may be missing."""

    takes_factors = True

    def run_as(self) -> Step:
        """With a bias: as a depthwise convolution of one tap, on the rows taken as an image of some width."""
        if self.bias is None:
            return self
        weight = torch.ones(self.c_in, dtype=torch.float32) if self.weight is None else self.weight
        width = next(w for w in range(56, 0, -1) if self.rows % w == 0)
        step = DepthwiseConv(self.x, self.y, self.covers, self.x_offset, c_in=self.c_in, c_out=self.c_out, batch=1)
        step.weight, step.bias, step.activation = weight.view(-1, 1, 1, 1), self.bias, self.activation
        step.size = step.out = (self.rows // width, width)
        return step.run_as()

    def compute(self, runs: Runs) -> Tensor:
        x = self.read_rows(runs)
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias


@dataclass(eq=False)
class Add(Elementwise):
    """Of `other`."""


@dataclass(eq=False)
class Scale(Elementwise):
    """By `gate`, one row for each `image_rows`."""

    def compute(self, runs: Runs) -> Tensor:
        return self.gated(runs, self.read_rows(runs))


@dataclass(eq=False)
class Difference(Elementwise):
    """Minus `other`."""

    subtracts = True

    def joined(self, result: Tensor, other: Tensor) -> Tensor:
        return result - other


@dataclass(eq=False)
class Quotient(Elementwise):
    """By `gate`, one row for each `image_rows`."""

    divides = True

    def compute(self, runs: Runs) -> Tensor:
        assert self.gate is not None
        x = self.read_rows(runs).view(-1, self.image_rows, self.c_in)
        return x / runs[self.gate].view(-1, 1, self.c_in)


@dataclass(eq=False)
class Bend(Elementwise):
    """An activation with numbers of its own."""

    def compute(self, runs: Runs) -> Tensor:
        assert self.slope is not None
        return F.leaky_relu(self.read_rows(runs), self.slope).clamp(*self.limits)


def _lay_out_affine(layout: Layout, node: Node) -> None:
    number, dim = node.inputs[0], node.dim
    shape = layout.shape(number)
    if node.weight is None and node.bias is None:  # an activation: whichever dimension is innermost
        dim = innermost_of(shape, layout.places[number].strides)
    emit_rows(layout, node, Affine, dense_rows(layout, number, dim % len(shape)), dim)


def _lay_out_bend(layout: Layout, node: Node, slope: float, limits: tuple[float, float]) -> None:
    number = node.inputs[0]
    dim = innermost_of(layout.shape(number), layout.places[number].strides)
    step = emit_rows(layout, node, Bend, dense_rows(layout, number, dim), dim)
    step.slope, step.limits = slope, limits


def _lay_out_sum(layout: Layout, node: Node, kind: type[Elementwise] = Add) -> None:
    dim, place, other = _two(layout, node)
    emit_rows(layout, node, kind, place, dim).other = other


def _lay_out_product(layout: Layout, node: Node, kind: type[Elementwise] = Scale) -> None:
    dim, place, other = _two(layout, node)
    step = emit_rows(layout, node, kind, place, dim)
    step.gate, step.image_rows = other, 1  # a gate for each row


def _two(layout: Layout, node: Node):
    """The dimension along which rows lie, the first operand, and the second in its order."""
    shape = layout.shape(node.output)
    dim = innermost_of(shape, layout.places[node.inputs[0]].strides)
    place = dense_rows(layout, node.inputs[0], dim)
    return dim, place, from_the_start(layout, node.inputs[1], place.strides)


def _lay_out_scale(layout: Layout, node: Node, kind: type[Elementwise] = Scale) -> None:
    shape, gated = layout.shape(node.inputs[0]), layout.shape(node.inputs[1])
    gate = from_the_start(layout, node.inputs[1], channels_last(gated))
    place = ordered(layout, node.inputs[0], channels_last(shape))
    step = layout.emit(node, kind, place, channels_last(shape), c_in=shape[1], c_out=shape[1])
    step.gate, step.image_rows = gate, shape[2] * shape[3]
    step.rows = shape[0] * step.image_rows


def _batch_norm(a: Arguments) -> Node:
    mean, variance = a.constant("running_mean"), a.constant("running_var")
    if a["training"] or mean is None or variance is None:
        raise LeaveAloneError("it normalises by the statistics of its input")
    weight, bias = a.constant("weight"), a.constant("bias")
    scale = (variance.double() + a["eps"]).rsqrt()
    scale = scale if weight is None else scale * weight.double()
    offset = -mean.double() * scale if bias is None else bias.double() - mean.double() * scale
    return a.node(_lay_out_affine, "input", weight=scale.float(), bias=offset.float())


def _activation(name: str) -> Callable[[Arguments], Node]:
    return lambda a: a.node(_lay_out_affine, "self" if "self" in a.given else "input", activation=name)


def _leaky_relu(a: Arguments) -> Node:
    return a.node(partial(_lay_out_bend, slope=float(a["negative_slope"]), limits=(-math.inf, math.inf)), "self")


def _clamp(a: Arguments) -> Node:
    names = ("min_val", "max_val") if "min_val" in a.given else ("min", "max")
    low, high = (a.given.get(name) for name in names)
    if isinstance(low, Ref) or isinstance(high, Ref):
        raise LeaveAloneError("it clamps to limits that are tensors")
    known: dict[tuple, str] = {(0, 6): "relu6", (0, None): "relu"}
    if name := known.get((low, high)):
        return a.node(_lay_out_affine, "self", activation=name)
    limits = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    if any(math.isnan(limit) or math.isinf(rounded(limit)) != math.isinf(limit) for limit in limits):
        raise LeaveAloneError("it clamps to limits that float32 does not hold")
    return a.node(partial(_lay_out_bend, slope=1.0, limits=limits), "self")


def _gelu(a: Arguments) -> Node:
    if a["approximate"] != "none":
        raise LeaveAloneError("it is the tanh form of GELU")
    return a.node(_lay_out_affine, "self", activation="gelu")


def _add(a: Arguments) -> Node:
    if a["alpha"] != 1:
        raise LeaveAloneError("it adds a multiple")
    for name, variable in (("self", "other"), ("other", "self")):
        if (by := _constant(a, name)) is not None:
            return _affine_by(a, variable, by, "bias")
    if a.value("self").shape != a.value("other").shape:
        raise LeaveAloneError("its operands have different shapes")
    return a.node(_lay_out_sum, "self", "other")


def _mul(a: Arguments) -> Node:
    for name, variable in (("self", "other"), ("other", "self")):
        if (by := _constant(a, name)) is not None:
            return _affine_by(a, variable, by, "weight")
    if a.value("self").shape == a.value("other").shape:
        return a.node(_lay_out_product, "self", "other")
    for wide, gate in (("self", "other"), ("other", "self")):
        if _is_gate(a, wide, gate):
            return a.node(_lay_out_scale, wide, gate)
    raise LeaveAloneError("it is no product with one factor a channel")


def _sub(a: Arguments) -> Node:
    if (by := _constant(a, "other")) is not None:
        return _affine_by(a, "self", -a["alpha"] * by, "bias")
    if (by := _constant(a, "self")) is not None:
        return _taken_from(a, "other", by)
    if a["alpha"] != 1 or a.value("self").shape != a.value("other").shape:
        raise LeaveAloneError("its operands have different shapes, or it subtracts a multiple")
    return a.node(partial(_lay_out_sum, kind=Difference), "self", "other")


def _neg(a: Arguments) -> Node:
    return _affine_by(a, "self", torch.tensor(-1.0, dtype=torch.float64), "weight")


def _rsub(a: Arguments) -> Node:
    by = _constant(a, "other")
    if by is None:
        raise LeaveAloneError("it subtracts from a value of the network")
    return _taken_from(a, "self", by)


def _taken_from(a: Arguments, variable: str, by: Tensor) -> Node:
    """A constant minus a value."""
    if a["alpha"] != 1:
        raise LeaveAloneError("it subtracts a multiple")
    node = _affine_by(a, variable, by, "bias")
    assert node.bias is not None
    node.weight = torch.full_like(node.bias, -1.0)
    return node


def _div(a: Arguments) -> Node:
    if a.given.get("rounding_mode"):
        raise LeaveAloneError("it rounds")
    if (by := _constant(a, "other")) is not None:
        return _affine_by(a, "self", 1 / by, "weight")
    if a.value("self").shape == a.value("other").shape:
        return a.node(partial(_lay_out_product, kind=Quotient), "self", "other")
    if _is_gate(a, "self", "other"):
        return a.node(partial(_lay_out_scale, kind=Quotient), "self", "other")
    raise LeaveAloneError("it divides by values that are neither of its shape nor one a channel")


def _is_gate(a: Arguments, wide: str, gate: str) -> bool:
    """Whether `gate` has one number for each channel of an image of `wide`."""
    shape = a.value(wide).shape
    return len(shape) == 4 and a.value(gate).shape == (*shape[:2], 1, 1) and shape == a.made.shape


def _constant(a: Arguments, name: str) -> Tensor | None:
    """An operand that is a number or a tensor that depends on no input, in double precision."""
    given = a[name]
    if not isinstance(given, Ref):
        return torch.tensor(float(given), dtype=torch.float64)
    tensor = a.tape.values[given.index].constant
    return None if tensor is None else tensor.detach().double()


def _affine_by(a: Arguments, variable: str, tensor: Tensor, what: str) -> Node:
    """`variable` times or plus a constant that is the same along all dimensions but one."""
    value = a.value(variable)
    if value.shape != a.made.shape or tensor.dim() > len(value.shape):
        raise LeaveAloneError("its constant is larger than its input")
    sizes = (1,) * (len(value.shape) - tensor.dim()) + tuple(tensor.shape)
    long = [i for i, n in enumerate(sizes) if n != 1]
    channel = 1 if len(value.shape) == 4 else len(value.shape) - 1
    if len(long) > 1:
        raise LeaveAloneError("its constant varies along more than one dimension")
    dim = long[0] if long else channel
    if not _are_normal(tensor):
        raise LeaveAloneError("its constant, or the reciprocal, is no normal number of float32")
    values = tensor.detach().float().reshape(-1).expand(value.shape[dim]).contiguous()
    return a.node(_lay_out_affine, variable, dim=dim, **{what: values})


def _are_normal(tensor: Tensor) -> bool:
    """Whether float32 holds all values as they are meant: finite, and zero or large enough for full precision."""
    sizes = tensor.detach().float().abs()
    return bool((sizes.isfinite() & ((sizes == 0) | (sizes >= torch.finfo(torch.float32).tiny))).all())


_ACTIVATIONS = {
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "hardswish": "hard_swish",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hard_sigmoid",
    "tanh": "tanh",
}
_CALLS = {
    **{name: _activation(ours) for name, ours in _ACTIVATIONS.items()},
    "leaky_relu": _leaky_relu,
    "hardtanh": _clamp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "add": _add,
    "mul": _mul,
    "neg": _neg,
    "sub": _sub,
    "div": _div,
}
Elementwise.calls = {
    "aten::batch_norm": _batch_norm,
    "aten::gelu": _gelu,
    "aten::rsub": _rsub,
    **{f"aten::{name}": lowering for name, lowering in _CALLS.items()},
    **{f"aten::{name}_": lowering for name, lowering in _CALLS.items()},
}
