"""Layer norm of the last dimension: csrc/layer_norm.h."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations.relayout import dense_rows, emit_rows
from separable.acceleration.steps import RowStep, Runs
from separable.acceleration.writer import Writer, bits


@dataclass(eq=False)
class LayerNorm(RowStep):
    kernel = "layer_norm"
    takes_factors = True

    eps: float = 0.0

    def fields(self, writer: Writer) -> list[int]:
        weight, bias = writer.constants.vector(self.weight), writer.constants.vector(self.bias)
        pointers = [writer.pointer(self.x, self.x_offset), weight, bias, writer.pointer(self.y)]
        return [*pointers, self.rows, self.c_in, bits(self.eps)]

    def compute(self, runs: Runs) -> Tensor:
        return F.layer_norm(self.read_rows(runs), (self.c_in,), self.weight, self.bias, self.eps)


def _layer_norm(a: Arguments) -> Node:
    if len(a["normalized_shape"]) != 1:
        raise LeaveAloneError("it normalises more than the last dimension")
    node = a.node(_lay_out, "input", weight=a.constant("weight"), bias=a.constant("bias"))
    node.eps, node.is_heavy = a["eps"], True
    return node


def _lay_out(layout: Layout, node: Node) -> None:
    dim = len(layout.shape(node.inputs[0])) - 1
    emit_rows(layout, node, LayerNorm, dense_rows(layout, node.inputs[0], dim), dim).eps = node.eps


LayerNorm.calls = {"aten::layer_norm": _layer_norm}
