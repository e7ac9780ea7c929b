"""Rows times and plus numbers, channel by channel, sums and products of two values, activations: csrc/elementwise.h.

Batch norms, scales and activations are all one step, an affine map, and most vanish in the step before (`fuse`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations.depthwise_conv import DepthwiseConv
from separable.acceleration.operations.relayout import dense_rows, emit_rows, from_the_start, ordered
from separable.acceleration.places import channels_last, innermost_of
from separable.acceleration.steps import RowStep, Runs, Step
from separable.acceleration.tape import Ref
from separable.acceleration.writer import CODES, Writer


@dataclass(eq=False)
class Elementwise(RowStep):
    """Times `weight` or `gate`, plus `other`."""

    kernel = "elementwise"
    takes_activation = True

    def fields(self, writer: Writer) -> list[int]:
        if self.weight is not None:
            scale, image_rows = writer.constants.vector(self.weight), self.rows
        else:
            scale, image_rows = writer.pointer(self.gate), self.image_rows or self.rows
        pointers = [writer.pointer(self.x, self.x_offset), scale, writer.pointer(self.other), writer.pointer(self.y)]
        return [*pointers, self.rows, self.c_in, image_rows, CODES[self.activation]]

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


def _lay_out_affine(layout: Layout, node: Node) -> None:
    number, dim = node.inputs[0], node.dim
    shape = layout.shape(number)
    if node.weight is None and node.bias is None:  # an activation: whichever dimension is innermost
        dim = innermost_of(shape, layout.places[number].strides)
    emit_rows(layout, node, Affine, dense_rows(layout, number, dim % len(shape)), dim)


def _lay_out_add(layout: Layout, node: Node) -> None:
    dim, place, other = _two(layout, node)
    emit_rows(layout, node, Add, place, dim).other = other


def _lay_out_multiply(layout: Layout, node: Node) -> None:
    dim, place, other = _two(layout, node)
    step = emit_rows(layout, node, Scale, place, dim)
    step.gate, step.image_rows = other, 1  # a gate for each row


def _two(layout: Layout, node: Node):
    """The dimension along which rows lie, the first operand, and the second in its order."""
    shape = layout.shape(node.output)
    dim = innermost_of(shape, layout.places[node.inputs[0]].strides)
    place = dense_rows(layout, node.inputs[0], dim)
    return dim, place, from_the_start(layout, node.inputs[1], place.strides)


def _lay_out_scale(layout: Layout, node: Node) -> None:
    shape, gated = layout.shape(node.inputs[0]), layout.shape(node.inputs[1])
    gate = from_the_start(layout, node.inputs[1], channels_last(gated))
    place = ordered(layout, node.inputs[0], channels_last(shape))
    step = layout.emit(node, Scale, place, channels_last(shape), c_in=shape[1], c_out=shape[1])
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


def _hardtanh(a: Arguments) -> Node:
    if (a["min_val"], a["max_val"]) != (0, 6):
        raise LeaveAloneError(f"it clamps to {a['min_val']} ... {a['max_val']}")
    return a.node(_lay_out_affine, "self", activation="relu6")


def _clamp(a: Arguments) -> Node:
    name = {(0, 6): "relu6", (0, None): "relu"}.get((a["min"], a.given.get("max")))
    if name is None:
        raise LeaveAloneError("it clamps to other limits than 0 and 6")
    return a.node(_lay_out_affine, "self", activation=name)


def _gelu(a: Arguments) -> Node:
    if a["approximate"] != "none":
        raise LeaveAloneError("it is the tanh form of GELU")
    return a.node(_lay_out_affine, "self", activation="gelu")


def _add(a: Arguments) -> Node:
    if a["alpha"] != 1:
        raise LeaveAloneError("it adds a multiple")
    this, other = a["self"], a["other"]
    constants = [x for x in (this, other) if not isinstance(x, Ref) or a.tape.values[x.index].constant is not None]
    if constants:
        variable = "other" if constants[0] is this else "self"
        return _affine_by(a, variable, constants[0], "bias")
    if a.value("self").shape != a.value("other").shape:
        raise LeaveAloneError("its operands have different shapes")
    return a.node(_lay_out_add, "self", "other")


def _mul(a: Arguments) -> Node:
    this, other = a["self"], a["other"]
    constants = [x for x in (this, other) if not isinstance(x, Ref) or a.tape.values[x.index].constant is not None]
    if constants:
        variable = "other" if constants[0] is this else "self"
        return _affine_by(a, variable, constants[0], "weight")
    shapes = {name: a.value(name).shape for name in ("self", "other")}
    if shapes["self"] == shapes["other"]:
        return a.node(_lay_out_multiply, "self", "other")
    for wide, gate in (("self", "other"), ("other", "self")):
        shape = shapes[wide]
        if len(shape) == 4 and shapes[gate] == (*shape[:2], 1, 1) and shape == a.made.shape:
            return a.node(_lay_out_scale, wide, gate)
    raise LeaveAloneError("it is no product with one factor a channel")


def _sub(a: Arguments) -> Node:
    if isinstance(a["other"], Ref):
        raise LeaveAloneError("it subtracts a value of the network")
    return _affine_by(a, "self", -a["alpha"] * a["other"], "bias")


def _div(a: Arguments) -> Node:
    if isinstance(a["other"], Ref) or a.given.get("rounding_mode"):
        raise LeaveAloneError("it divides by a value of the network, or rounds")
    by = float(a["other"])
    return _affine_by(a, "self", math.copysign(math.inf, by) if by == 0 else 1 / by, "weight")


def _affine_by(a: Arguments, variable: str, by: Any, what: str) -> Node:
    """`variable` times or plus a constant that is the same along all dimensions but one."""
    value = a.value(variable)
    tensor = a.tape.values[by.index].constant if isinstance(by, Ref) else torch.tensor(float(by), dtype=torch.float32)
    assert tensor is not None
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
}
_CALLS = {
    **{name: _activation(ours) for name, ours in _ACTIVATIONS.items()},
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "add": _add,
    "mul": _mul,
    "sub": _sub,
    "div": _div,
}
Elementwise.calls = {
    "aten::batch_norm": _batch_norm,
    "aten::clamp_min": _clamp,
    "aten::gelu": _gelu,
    **{f"aten::{name}": lowering for name, lowering in _CALLS.items()},
    **{f"aten::{name}_": lowering for name, lowering in _CALLS.items()},
}
