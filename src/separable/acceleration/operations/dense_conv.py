"""Convolution of all channels together, or of groups of them: csrc/dense_conv.h."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations.onednn_conv import OneDNNConv
from separable.acceleration.operations.relayout import ordered
from separable.acceleration.operations.winograd_conv import WinogradConv
from separable.acceleration.places import channels_last, strides_as_image
from separable.acceleration.steps import GroupedConv, ImageStep, Runs, Step, packed_alike

_FEW_CHANNELS = 16  # read as they lie; of more, channels side by side are worth a copy
DIRECT, ONEDNN = 0, -1  # forms; those between are the outputs of a Winograd tile in each direction


@dataclass(eq=False)
class DenseConv(GroupedConv):
    kernel = "dense_conv"
    takes_factors = takes_activation = takes_residual = True
    form: int = DIRECT  # one of `forms`

    @staticmethod
    def fits(node: Node) -> bool:
        return True

    @classmethod
    def lay_out(cls, layout: Layout, node: Node) -> None:
        number, shape = node.inputs[0], layout.shape(node.inputs[0])
        place = layout.places[number] if shape[1] < _FEW_CHANNELS else ordered(layout, number, channels_last(shape))
        step = layout.emit_images(node, cls, place)
        step.x_strides, step.groups = strides_as_image(shape, place.strides), node.groups

    @property
    def has_winograd_form(self) -> bool:
        small = self.kernel_size == (3, 3) and self.stride == (1, 1) and self.dilation == (1, 1)
        return small and self.groups == 1 and self.x_strides[1] == 1 and self.c_in >= 8

    @property
    def forms(self) -> list[int]:
        """Ways to compute it: direct, Winograd's of 2x2 and 4x4 outputs, oneDNN's."""
        return [DIRECT, *([2, 4] if self.has_winograd_form else []), *([ONEDNN] if self._by_onednn().fits else [])]

    def run_as(self) -> Step:
        return self if self.form == DIRECT else self._by_onednn() if self.form == ONEDNN else self._by_winograd()

    def _by_onednn(self) -> OneDNNConv:
        return OneDNNConv(**self._alike(GroupedConv))

    def _by_winograd(self) -> WinogradConv:
        return WinogradConv(**self._alike(ImageStep), tile=self.form)

    def _alike(self, kind: type[ImageStep]) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(kind)}

    @property
    def name(self) -> str:
        run_as = self.run_as()
        return f"{run_as.kernel} ({self.form}x{self.form})" if isinstance(run_as, WinogradConv) else run_as.kernel

    def weights(self) -> list[Tensor]:
        """[O, I, kh, kw] where the pixels of its input lie side by side, else and of groups [O, kh, kw, I], as
        csrc/dense_conv.h reads it; of one channel both are the same."""
        assert self.weight is not None
        if self.x_strides[3] == 1 and self.groups == 1:
            return packed_alike(self.weight)
        return [self.weight.permute(0, 2, 3, 1).to(torch.float32).contiguous()]

    def compute(self, runs: Runs) -> Tensor:
        return self.convolved(runs, self.groups)
