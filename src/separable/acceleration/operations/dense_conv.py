"""Convolution of all channels together, or of groups of them: csrc/dense_conv.h."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations.relayout import ordered
from separable.acceleration.operations.winograd_conv import WinogradConv
from separable.acceleration.places import channels_last
from separable.acceleration.steps import ImageStep, Runs, Step, packed_alike
from separable.acceleration.writer import CODES, Writer

_FEW_FACTORS = 64  # of a sum, as a stem's on three channels: rounding them saves nothing
_FEW_CHANNELS = 16  # read as they lie; of more, channels side by side are worth a copy


@dataclass(eq=False)
class DenseConv(ImageStep):
    kernel = "dense_conv"
    takes_factors = takes_activation = takes_residual = True
    groups: int = 1
    tile: int = 0  # outputs of a Winograd tile in each direction, 4 or 2; 0 for the direct form

    @staticmethod
    def fits(node: Node) -> bool:
        return True

    @classmethod
    def lay_out(cls, layout: Layout, node: Node) -> None:
        number, shape = node.inputs[0], layout.shape(node.inputs[0])
        place = layout.places[number] if shape[1] < _FEW_CHANNELS else ordered(layout, number, channels_last(shape))
        step = layout.emit_images(node, cls, place)
        step.x_strides, step.groups = place.strides, node.groups

    @property
    def has_winograd_form(self) -> bool:
        small = self.kernel_size == (3, 3) and self.stride == (1, 1) and self.dilation == (1, 1)
        return small and self.groups == 1 and self.x_strides[1] == 1 and self.c_in >= 8

    def run_as(self) -> Step:
        if not self.tile:
            return self
        alike = {f.name: getattr(self, f.name) for f in dataclasses.fields(ImageStep)}
        return WinogradConv(**alike, tile=self.tile)

    @property
    def name(self) -> str:
        return f"winograd_conv ({self.tile}x{self.tile})" if self.tile else self.kernel

    def weights(self) -> list[Tensor]:
        """[O, I, kh, kw] where the pixels of its input lie side by side, else and of groups [O, kh, kw, I], as
        csrc/dense_conv.h reads it; of one channel both are the same."""
        assert self.weight is not None
        if self.x_strides[3] == 1 and self.groups == 1:
            return packed_alike(self.weight)
        return [self.weight.permute(0, 2, 3, 1).to(torch.float32).contiguous()]

    def fields(self, writer: Writer) -> list[int]:
        pointers = [writer.pointer(self.x, self.x_offset), writer.weight(), writer.constants.vector(self.bias)]
        pointers += [writer.pointer(self.other), writer.pointer(self.y)]
        images = [self.batch, self.c_in, self.c_out, self.groups, *self.size, *self.out, *self.x_strides]
        exact = self.c_in * self.kernel_size[0] * self.kernel_size[1] < _FEW_FACTORS or self.groups > 1
        ends = [CODES[self.activation], int(self.activation_last), 0 if exact else writer.product]
        return [*pointers, *images, *self.window, *ends]

    def compute(self, runs: Runs) -> Tensor:
        return self.convolved(runs, self.groups)
