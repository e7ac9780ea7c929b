"""Transposed convolution: csrc/transposed_conv.h."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations import convolution
from separable.acceleration.operations.relayout import ordered
from separable.acceleration.places import as_image, channels_last
from separable.acceleration.steps import GroupedConv, Runs
from separable.functional.arguments import Window

_FEW_OF_A_GROUP = 8  # channels: less than a vector, which torch multiplies faster


@dataclass(eq=False)
class TransposedConv(GroupedConv):
    """Its weight is [O, I/groups, kh, kw], as that of a convolution; `padding` is cut off before the first result."""

    kernel = "transposed_conv"
    takes_factors = takes_activation = True

    @property
    def takes_residual(self) -> bool:  # type: ignore[override]
        return not _filters_alone(self.groups, self.c_in, self.c_out)

    def weights(self) -> list[Tensor]:
        """[O, kh, kw, I/groups] of the taps of each phase, last tap first, one after the other."""
        assert self.weight is not None
        weight = self.weight.to(torch.float32).flip(2, 3).permute(0, 2, 3, 1)
        down, across = (self._taps_of_phases(i) for i in (0, 1))
        phases = []
        for rows, columns in itertools.product(down, across):
            taps = weight[:, rows][:, :, columns] if rows and columns else torch.zeros_like(weight[:, :1, :1])
            phases.append(taps.reshape(-1))
        return [torch.cat(phases)]

    def _taps_of_phases(self, i: int) -> list[list[int]]:
        """For each remainder of the results by the stride the taps that they meet, by their numbers from the last."""
        kernel, stride, dilation = self.kernel_size[i], self.stride[i], self.dilation[i]
        taps = range(kernel - 1, -1, -1)
        return [
            [kernel - 1 - k for k in taps if (phase + self.padding[i] - k * dilation) % stride == 0]
            for phase in range(stride)
        ]

    def compute(self, runs: Runs) -> Tensor:
        assert self.weight is not None
        added = []
        for i in (0, 1):
            reach = self.dilation[i] * (self.kernel_size[i] - 1) + 1
            added.append(self.out[i] - ((self.size[i] - 1) * self.stride[i] - 2 * self.padding[i] + reach))
        weight = _swapped(self.weight, self.groups)
        options = (self.stride, self.padding, added, self.groups, self.dilation)
        return F.conv_transpose2d(self.read_images(runs), weight, self.bias, *options).permute(0, 2, 3, 1)


def _filters_alone(groups: int, channels: int, filters: int) -> bool:
    """Each channel on its own."""
    return groups > 1 and groups == channels == filters


def _swapped(weight: Tensor, groups: int) -> Tensor:
    """[A, B/groups, kh, kw] as [B, A/groups, kh, kw]."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _conv_transpose(a: Arguments) -> Node:
    images, weight = a.images("input"), a.filters()
    if 0 in images.shape[1:] or 0 in a.made.shape[1:]:
        raise LeaveAloneError("it is empty")
    channels, filters, groups = images.shape[1], a.made.shape[1], a["groups"]
    few = groups > 1 and min(channels, filters) < _FEW_OF_A_GROUP * groups
    if few and not _filters_alone(groups, channels, filters):
        raise LeaveAloneError("its groups are of few channels")
    stride, padding, dilation = a.pair("stride", 1), a.pair("padding", 0), a.pair("dilation", 1)
    node = a.node(_lay_out, "input", weight=_swapped(weight, groups), bias=a.constant("bias"))
    node.groups, node.is_heavy = groups, True
    before = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    if stride == (1, 1) and min(before) >= 0:
        return _as_convolution(node, before, dilation)
    node.window = Window(stride, tuple((p, p) for p in padding), dilation)
    return node


def _as_convolution(node: Node, padding: list[int], dilation: tuple[int, int]) -> Node:
    """Of stride 1: a convolution by the kernel turned round."""
    assert node.weight is not None
    node.lay_out, node.weight, node.border = convolution.lay_out, node.weight.flip(2, 3), 0.0
    node.window = Window((1, 1), tuple((p, p) for p in padding), dilation)
    return node


def _lay_out(layout: Layout, node: Node) -> None:
    number = node.inputs[0]
    place = ordered(layout, number, channels_last(layout.shape(number)))
    step = layout.emit_images(node, TransposedConv, place)
    step.x_strides, step.groups = channels_last(as_image(layout.shape(number))), node.groups


TransposedConv.calls = {"aten::conv_transpose1d": _conv_transpose, "aten::conv_transpose2d": _conv_transpose}
