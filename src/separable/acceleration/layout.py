"""Nodes laid into memory, one after the other.

Here a value is a place: a run of memory, an offset and strides. A permutation or a reshape only changes the strides, so
that it costs nothing; where a step needs another order than the one at hand, a step copies (`operations/relayout.py`).
"""

from typing import Any, TypeVar

import torch

from separable.acceleration.graph import Node
from separable.acceleration.places import Memory, Place, Strides, as_image, channels_last
from separable.acceleration.steps import ImageStep, Step
from separable.acceleration.tape import Tape

AnyStep = TypeVar("AnyStep", bound=Step)
AnyImageStep = TypeVar("AnyImageStep", bound=ImageStep)


class Layout:
    """`places` says where each value lies, `steps` what makes them; each node's `lay_out` adds to both."""

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

    def emit(self, node: Node, kind: type[AnyStep], x: Place, strides: Strides, **fields: Any) -> AnyStep:
        """A step whose result is the node's value, dense in `strides`."""
        y = Memory(torch.Size(self.shape(node.output)).numel())
        step = kind(x.memory, y, [*node.merged, node.call], x.offset, activation=node.activation, **fields)
        step.weight, step.bias = node.weight, node.bias
        self.steps.append(step)
        self.places[node.output] = Place(y, 0, strides)
        return step

    def emit_images(self, node: Node, kind: type[AnyImageStep], x: Place) -> AnyImageStep:
        """A step that makes a channels-last image of another by the node's window; a sequence is one row of pixels."""
        strides, window = channels_last(self.shape(node.output)), node.window
        shape, made = as_image(self.shape(node.inputs[0])), as_image(self.shape(node.output))
        assert window is not None
        step = self.emit(node, kind, x, strides, batch=shape[0], c_in=shape[1], c_out=made[1])
        step.size, step.out = (shape[2], shape[3]), (made[2], made[3])
        step.kernel_size = node.kernel if node.weight is None else tuple(node.weight.shape[2:])  # type: ignore[assignment]
        step.stride, step.dilation = window.stride, window.dilation  # type: ignore[assignment]
        step.padding = (window.pairs[0][0], window.pairs[1][0])
        return step
