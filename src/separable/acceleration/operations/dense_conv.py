"""Convolution of all channels together: csrc/dense_conv.h."""

from dataclasses import dataclass

import torch
from torch import Tensor

from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.steps import ImageStep, Runs, packed_alike
from separable.acceleration.writer import CODES, Writer

_FEW_FACTORS = 64  # of a sum, as a stem's on three channels: rounding them saves nothing


@dataclass(eq=False)
class DenseConv(ImageStep):
    kernel = "dense_conv"
    takes_factors = takes_activation = takes_residual = True

    @staticmethod
    def fits(node: Node) -> bool:
        return node.groups == 1

    @classmethod
    def lay_out(cls, layout: Layout, node: Node) -> None:
        place = layout.places[node.inputs[0]]  # in whatever order
        layout.emit_images(node, cls, place).x_strides = place.strides

    def weights(self) -> list[Tensor]:
        """[O, I, kh, kw] where the pixels of its input lie side by side, else [O, kh, kw, I], as csrc/dense_conv.h
        reads it; of one channel both are the same."""
        assert self.weight is not None
        if self.x_strides[3] == 1:
            return packed_alike(self.weight)
        return [self.weight.permute(0, 2, 3, 1).to(torch.float32).contiguous()]

    def fields(self, writer: Writer) -> list[int]:
        pointers = [writer.pointer(self.x, self.x_offset), writer.weight(), writer.constants.vector(self.bias)]
        pointers += [writer.pointer(self.other), writer.pointer(self.y)]
        images = [self.batch, self.c_in, self.c_out, *self.size, *self.out, *self.x_strides]
        small = self.c_in * self.kernel_size[0] * self.kernel_size[1] < _FEW_FACTORS
        ends = [CODES[self.activation], int(self.activation_last), 0 if small else writer.product]
        return [*pointers, *images, *self.window, *ends]

    def compute(self, runs: Runs) -> Tensor:
        return self.convolved(runs, 1)
