"""A map of each row's channels: convolutions of one pixel and linear layers; csrc/pointwise_conv.h."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations.relayout import rows
from separable.acceleration.places import channels_last, contiguous
from separable.acceleration.steps import RowStep, Runs, packed_alike
from separable.acceleration.writer import CODES, NULL, Writer, bits

# Of a product such as squeeze-excite's: it takes no time, and its rounding comes back in every pixel that it scales.
# Kept in float32, MobileNetV3-Large lies 0.8 % from float32 (benchmarks/networks.py), rounded nearly twice as far.
_FEW_ROWS, _SMALL_WEIGHT = 16, 2**19


@dataclass(eq=False)
class PointwiseConv(RowStep):
    kernel = "pointwise_conv"
    takes_factors = takes_activation = takes_residual = True

    normalize: bool = False  # a layer norm, of `eps`, before it
    eps: float = 0.0

    @staticmethod
    def fits(node: Node) -> bool:
        """Kernel and stride 1, nothing padded."""
        assert node.weight is not None
        assert node.window is not None
        ones = all(k == 1 for k in node.weight.shape[2:]) and all(s == 1 for s in node.window.stride)
        return ones and node.groups == 1 and not any(before or after for before, after in node.window.pairs)

    @classmethod
    def lay_out(cls, layout: Layout, node: Node) -> None:
        shape, made = layout.shape(node.inputs[0]), layout.shape(node.output)
        place, x_stride = rows(layout, node.inputs[0], 1)
        step = layout.emit(node, cls, place, channels_last(made), c_in=shape[1], c_out=made[1])
        step.image_rows = torch.Size(shape[2:]).numel()
        step.rows, step.x_stride = shape[0] * step.image_rows, x_stride

    @property
    def reads_dense_rows(self) -> bool:
        return self.x_stride == self.c_in

    def weights(self) -> list[Tensor]:
        return packed_alike(self.weight)

    def fields(self, writer: Writer) -> list[int]:
        pointers = [writer.pointer(self.x, self.x_offset), writer.weight(), writer.constants.vector(self.bias)]
        pointers += [writer.pointer(self.gate), writer.pointer(self.other), writer.pointer(self.y), NULL]
        sizes = [self.rows, self.c_in, self.c_out, self.x_stride, self.c_out, self.c_out, self.image_rows]
        small = self.rows < _FEW_ROWS and self.c_in * self.c_out < _SMALL_WEIGHT
        kinds = [CODES[self.activation], int(self.activation_last), int(self.normalize), 0 if small else writer.product]
        return [*pointers, *sizes, *kinds, bits(self.eps)]

    def compute(self, runs: Runs) -> Tensor:
        assert self.weight is not None
        x = self.read_rows(runs)
        if self.normalize:
            x = F.layer_norm(x, (self.c_in,), eps=self.eps)
        return F.linear(self.gated(runs, x), self.weight.reshape(self.c_out, self.c_in), self.bias)


def _linear(a: Arguments) -> Node:
    weight = a.constant("weight")
    if weight is None or weight.dim() != 2 or len(a.value("input").shape) < 2:
        raise LeaveAloneError("its weight is no matrix, or its input a vector")
    return a.node(_lay_out_linear, "input", weight=weight, bias=a.constant("bias"), is_heavy=True)


def _lay_out_linear(layout: Layout, node: Node) -> None:
    shape, made = layout.shape(node.inputs[0]), layout.shape(node.output)
    place, x_stride = rows(layout, node.inputs[0], len(shape) - 1)
    step = layout.emit(node, PointwiseConv, place, contiguous(made), c_in=shape[-1], c_out=made[-1])
    step.rows, step.x_stride = torch.Size(shape[:-1]).numel(), x_stride
    step.image_rows = step.rows // shape[0] if shape[0] else 0


PointwiseConv.calls = {"aten::linear": _linear}
