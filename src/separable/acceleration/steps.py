"""Nodes laid into memory: steps that read and write dense runs of floats, channels innermost.

Here a value is a place: a run of memory, an offset and strides. A permutation or a reshape only changes the strides, so
that it costs nothing; where a step needs another order than the one at hand, a `relayout` step copies.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from separable.acceleration.graph import Node
from separable.acceleration.tape import Call, Tape

Strides = tuple[int, ...]


@dataclass(eq=False)
class Memory:
    """A run of floats that a step makes, or, where `value` is not None, a tensor that torch made."""

    floats: int
    value: int | None = None


@dataclass(frozen=True, eq=False)
class Place:
    """Where a value lies."""

    memory: Memory
    offset: int  # floats
    strides: Strides


@dataclass(eq=False)
class Step:
    """One run of a kernel.

    kind         what it computes, and which of the fields below it needs beside x and y
    depthwise    images: batch, size, out; kernel, stride, padding; c_in, c_out (the output's channels)
    dense        the same, x_strides of the input's [N, C, H, W]
    pointwise    rows of c_in floats, x_stride apart, to rows of c_out; gate (image_rows), normalize, eps
    affine       rows of c_in floats: times weight, plus bias
    add, scale   rows of c_in floats plus `other`; times `gate`, one row for each image_rows
    norm         rows of c_in floats, eps
    pool         images; average, factor
    relayout     sizes, from x_strides to y_strides
    separable    parts: [pointwise,] depthwise [, pointwise]
    """

    kind: str
    x: Memory
    y: Memory
    covers: list[Call]
    x_offset: int = 0
    y_offset: int = 0
    other: Memory | None = None  # what is added: a residual
    gate: Memory | None = None
    sums: Memory | None = None  # of separable: what it leaves for the mean over each image
    weight: Tensor | None = None
    bias: Tensor | None = None
    activation: str | None = None
    activation_last: bool = True  # after `other` is added
    rows: int = 0
    c_in: int = 0
    c_out: int = 0
    x_stride: int = 0
    image_rows: int = 0
    normalize: bool = False
    eps: float = 0.0
    batch: int = 0
    size: tuple[int, int] = (1, 1)
    out: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    average: bool = False
    factor: float = 0.0
    sizes: tuple[int, ...] = ()
    x_strides: Strides = ()
    y_strides: Strides = ()
    parts: list["Step"] = field(default_factory=list)

    @property
    def reads(self) -> list[Memory]:
        inside = [part.y for part in self.parts]
        found = [m for part in self.parts for m in part.reads if m not in inside]
        return [m for m in (self.x, self.other, self.gate, *found) if m is not None]


def contiguous(shape: tuple[int, ...]) -> Strides:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def channels_last(shape: tuple[int, ...]) -> Strides:
    """Of [N, C, H, W], channels innermost."""
    _, channels, height, width = shape
    return (height * width * channels, 1, width * channels, channels)


def same_order(shape: tuple[int, ...], a: Strides, b: Strides) -> bool:
    """Whether both strides name the same element at every index."""
    return all(x == y for n, x, y in zip(shape, a, b, strict=True) if n > 1)


def row_stride(shape: tuple[int, ...], strides: Strides, dim: int) -> int | None:
    """Distance of the rows along `dim` (stride 1), in the order of the other dimensions' strides; None if uneven.

    Rows then follow each other in memory, as those of a channels-last image do, perhaps with gaps between them.
    """
    if strides[dim] != 1 and shape[dim] > 1:
        return None
    others = sorted(((s, n) for i, (s, n) in enumerate(zip(strides, shape, strict=True)) if i != dim and n > 1))
    if not others:
        return shape[dim]
    distance = others[0][0]
    expected = distance
    for stride, n in others:
        if stride != expected:
            return None
        expected *= n
    return distance if distance >= shape[dim] else None


class Layout:
    """Turns nodes into steps, one after the other; `places` says where each value lies."""

    def __init__(self, tape: Tape):
        self.tape = tape
        self.places: dict[int, Place] = {}
        self.steps: list[Step] = []

    def shape(self, number: int) -> tuple[int, ...]:
        return self.tape.values[number].shape

    def given(self, number: int) -> None:
        """A tensor that torch made, as the tape saw it."""
        value = self.tape.values[number]
        span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.strides, strict=True))
        self.places[number] = Place(Memory(span, number), 0, value.strides)

    def add(self, node: Node) -> None:
        getattr(self, f"_{node.kind}")(node)

    def ordered(self, number: int, strides: Strides) -> Place:
        """The value in these dense strides, copied if it lies otherwise."""
        place, shape = self.places[number], self.shape(number)
        if same_order(shape, place.strides, strides):
            return place
        return self.copy(place, shape, strides)

    def copy(
        self, place: Place, shape: tuple[int, ...], strides: Strides, into: tuple[Memory, int] | None = None
    ) -> Place:
        """The same value in other strides, in new memory or at an offset of the memory given."""
        floats = 1
        for n in shape:
            floats *= n
        memory, offset = into or (Memory(floats), 0)
        step = Step("relayout", place.memory, memory, [], place.offset, offset)
        step.sizes, step.x_strides, step.y_strides = shape, place.strides, strides
        self.steps.append(step)
        return Place(memory, offset, strides)

    def _emit(self, node: Node, kind: str, x: Place, strides: Strides, **fields) -> Step:
        """A step whose result is the node's value, dense in `strides`."""
        shape = self.shape(node.output)
        y = Memory(torch.Size(shape).numel())
        step = Step(kind, x.memory, y, [*node.merged, node.call], x.offset, activation=node.activation, **fields)
        step.weight, step.bias, step.eps = node.weight, node.bias, node.eps
        self.steps.append(step)
        self.places[node.output] = Place(y, 0, strides)
        return step

    def _images(self, node: Node, kind: str, x: Place) -> Step:
        shape, made, window = self.shape(node.inputs[0]), self.shape(node.output), node.window
        assert window is not None
        step = self._emit(node, kind, x, channels_last(made), batch=shape[0], c_in=shape[1], c_out=made[1])
        step.size, step.out = (shape[2], shape[3]), (made[2], made[3])
        step.kernel = node.kernel if node.weight is None else tuple(node.weight.shape[2:])  # type: ignore[assignment]
        step.stride, step.dilation = window.stride, window.dilation  # type: ignore[assignment]
        step.padding = (window.pairs[0][0], window.pairs[1][0])
        return step

    def _conv(self, node: Node) -> None:
        number = node.inputs[0]
        shape, made = self.shape(number), self.shape(node.output)
        if node.is_depthwise():
            self._images(node, "depthwise", self.ordered(number, channels_last(shape)))
        elif node.is_pointwise() and (rows := self._rows(number, 1)):
            place, x_stride = rows
            count = shape[0] * shape[2] * shape[3]
            step = self._emit(node, "pointwise", place, channels_last(made), rows=count, c_in=shape[1], c_out=made[1])
            step.x_stride, step.image_rows = x_stride, shape[2] * shape[3]
        else:
            step = self._images(node, "dense", self.places[number])
            step.x_strides = self.places[number].strides

    def _rows(self, number: int, dim: int) -> tuple[Place, int]:
        """The value as rows along `dim`, in the order of the other dimensions, and their distance."""
        place, shape = self.places[number], self.shape(number)
        wanted = _innermost(shape, dim)
        distance = row_stride(shape, place.strides, dim)
        if distance is None or not _follows(shape, place.strides, wanted, dim):
            place, distance = self.copy(place, shape, wanted), shape[dim]
        return place, distance

    def _linear(self, node: Node) -> None:
        shape, made = self.shape(node.inputs[0]), self.shape(node.output)
        place, x_stride = self._rows(node.inputs[0], len(shape) - 1)
        rows = torch.Size(shape[:-1]).numel()
        step = self._emit(node, "pointwise", place, contiguous(made), rows=rows, c_in=shape[-1], c_out=made[-1])
        step.x_stride = x_stride
        step.image_rows = rows // shape[0] if shape[0] else 0

    def _dense_rows(self, number: int, dim: int) -> Place:
        """The value in whatever dense order it has with `dim` innermost, copied if it has none."""
        place, shape = self.places[number], self.shape(number)
        if row_stride(shape, place.strides, dim) == shape[dim]:
            return place
        return self.copy(place, shape, _innermost(shape, dim))

    def _row_step(self, node: Node, kind: str, dim: int) -> Step:
        shape = self.shape(node.inputs[0])
        place = self._dense_rows(node.inputs[0], dim % len(shape))
        channels = shape[dim]
        rows = torch.Size(shape).numel() // channels if channels else 0
        return self._emit(node, kind, place, place.strides, rows=rows, c_in=channels, c_out=channels)

    def _affine(self, node: Node) -> None:
        dim = node.dim
        if node.weight is None and node.bias is None:  # an activation: whichever dimension is innermost
            strides, shape = self.places[node.inputs[0]].strides, self.shape(node.inputs[0])
            dim = next(
                (i for i, (s, n) in enumerate(zip(strides, shape, strict=True)) if s == 1 and n > 1), len(shape) - 1
            )
        self._row_step(node, "affine", dim)

    def _norm(self, node: Node) -> None:
        self._row_step(node, "norm", len(self.shape(node.inputs[0])) - 1)

    def _add(self, node: Node) -> None:
        step = self._of_two(node, "add")
        step.other = self._second(node)
        self._last(step)

    def _multiply(self, node: Node) -> None:
        step = self._of_two(node, "scale")  # with a gate for each row
        step.gate, step.image_rows = self._second(node), 1
        self._last(step)

    def _last(self, step: Step) -> None:
        """After the copies that it needs."""
        self.steps.remove(step)
        self.steps.append(step)

    def _of_two(self, node: Node, kind: str) -> Step:
        shape = self.shape(node.output)
        strides = self.places[node.inputs[0]].strides
        dim = next((i for i, (s, n) in enumerate(zip(strides, shape, strict=True)) if s == 1 and n > 1), len(shape) - 1)
        return self._row_step(node, kind, dim)

    def _second(self, node: Node) -> Memory:
        """The second operand in the order of the first, from the start of its memory."""
        strides = self.places[node.output].strides
        other = self.ordered(node.inputs[1], strides)
        return other.memory if not other.offset else self.copy(other, self.shape(node.output), strides).memory

    def _scale(self, node: Node) -> None:
        shape, gated = self.shape(node.inputs[0]), self.shape(node.inputs[1])
        gate = self.ordered(node.inputs[1], channels_last(gated))
        if gate.offset:
            gate = self.copy(gate, gated, channels_last(gated))
        place = self.ordered(node.inputs[0], channels_last(shape))
        rows = shape[0] * shape[2] * shape[3]
        step = self._emit(node, "scale", place, channels_last(shape), rows=rows, c_in=shape[1], c_out=shape[1])
        step.gate, step.image_rows = gate.memory, shape[2] * shape[3]

    def _mean(self, node: Node) -> None:
        shape = self.shape(node.inputs[0])
        place = self.ordered(node.inputs[0], channels_last(shape))
        made = self.shape(node.output)
        strides = channels_last(made) if len(made) == 4 else contiguous(made)
        step = self._emit(node, "pool", place, strides, batch=shape[0], c_in=shape[1], c_out=shape[1])
        step.size, step.kernel, step.average = (shape[2], shape[3]), (shape[2], shape[3]), True

    def _pool(self, node: Node) -> None:
        shape = self.shape(node.inputs[0])
        step = self._images(node, "pool", self.ordered(node.inputs[0], channels_last(shape)))
        step.average = node.average
        if node.counts_padding:
            step.factor = 1 / (step.kernel[0] * step.kernel[1])

    def _cat(self, node: Node) -> None:
        made = self.shape(node.output)
        first = self.places[node.inputs[0]].strides
        image = len(made) == 4 and same_order(
            self.shape(node.inputs[0]), first, channels_last(self.shape(node.inputs[0]))
        )
        strides = channels_last(made) if image else contiguous(made)
        memory, at = Memory(torch.Size(made).numel()), 0
        for number in node.inputs:
            shape = self.shape(number)
            self.copy(self.places[number], shape, strides, (memory, at * strides[node.dim]))
            at += shape[node.dim]
        self.steps[-1].covers = [*node.merged, node.call]
        self.places[node.output] = Place(memory, 0, strides)

    def _view(self, node: Node) -> None:
        place, shape = self.places[node.inputs[0]], self.shape(node.inputs[0])
        if node.call.name in _IDENTITIES:
            self.places[node.output] = place
            return
        seen = _seen(node, shape, place)
        if seen is None:
            place = self.copy(place, shape, contiguous(shape))
            seen = _seen(node, shape, place)
        assert seen is not None
        self.places.update(zip(node.outputs, seen, strict=True))


_IDENTITIES = (
    "aten::to",
    "aten::type_as",
    "aten::contiguous",
    "aten::clone",
    "aten::detach",
    "aten::alias",
    "aten::dropout",
    "aten::feature_dropout",
    "aten::adaptive_avg_pool2d",
)


def _innermost(shape: tuple[int, ...], dim: int) -> Strides:
    """Dense strides with `dim` innermost and the others in their order."""
    order = [i for i in range(len(shape)) if i != dim] + [dim]
    dense = contiguous(tuple(shape[i] for i in order))
    return tuple(dense[order.index(i)] for i in range(len(shape)))


def _follows(shape: tuple[int, ...], strides: Strides, wanted: Strides, dim: int) -> bool:
    """Whether the dimensions other than `dim` come in the same order in both."""
    others = [i for i in range(len(shape)) if i != dim and shape[i] > 1]
    return sorted(others, key=lambda i: -strides[i]) == sorted(others, key=lambda i: -wanted[i])


def _seen(node: Node, shape: tuple[int, ...], place: Place) -> list[Place] | None:
    """Where the view's results lie, if they can be views of memory in this order."""
    stored = torch.empty_strided(shape, place.strides, device="meta")
    arguments = list(node.call.args)
    arguments[0] = stored
    try:
        view = node.call.target(*arguments, **node.call.kwargs)
    except RuntimeError:
        return None
    views = [view] if isinstance(view, torch.Tensor) else list(view)
    if not all(torch._C._is_alias_of(view, stored) for view in views):  # type: ignore[attr-defined]
        return None
    return [Place(place.memory, place.offset + int(view.storage_offset()), tuple(view.stride())) for view in views]
