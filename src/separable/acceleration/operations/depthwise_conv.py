"""Channels filtered on their own, several maps of each or several summed: csrc/depthwise_conv.h."""

from dataclasses import dataclass

from torch import Tensor

from separable import _native
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations.relayout import ordered
from separable.acceleration.operations.separable_conv import SeparableConv
from separable.acceleration.places import channels_last
from separable.acceleration.steps import ImageStep, Runs, Step, packed_alike
from separable.acceleration.writer import CODES, Writer

_MOST_MAPS, _MOST_MAPS_OF_FOUR_LANES = 8, 4


@dataclass(eq=False)
class DepthwiseConv(ImageStep):
    kernel = "depthwise_conv"
    takes_factors = takes_activation = True

    @staticmethod
    def fits(node: Node) -> bool:
        """Weights [C*m, 1, kh, kw] make m maps of each channel, [C/m, m, kh, kw] sum m filtered ones."""
        assert node.weight is not None
        channels, filters = node.weight.shape[1] * node.groups, node.weight.shape[0]
        most = _MOST_MAPS_OF_FOUR_LANES if 0 < _native.lanes() < 8 else _MOST_MAPS
        alone = node.groups > 1 and node.groups == min(channels, filters)
        return alone and max(channels, filters) <= most * node.groups

    @classmethod
    def lay_out(cls, layout: Layout, node: Node) -> None:
        number = node.inputs[0]
        layout.emit_images(node, cls, ordered(layout, number, channels_last(layout.shape(number))))

    @property
    def makes(self) -> int:
        """Maps of each channel."""
        return max(self.c_out // self.c_in, 1)

    @property
    def adds(self) -> int:
        """Filtered channels that are added to one map."""
        return max(self.c_in // self.c_out, 1)

    def run_as(self) -> Step:
        """With one map a channel: as a chain of its own."""
        return SeparableConv.of([self]) if self.c_in == self.c_out else self

    def weights(self) -> list[Tensor]:
        return packed_alike(self.weight)

    def fields(self, writer: Writer) -> list[int]:
        pointers = [writer.pointer(self.x, self.x_offset), writer.weight(), writer.constants.vector(self.bias)]
        images = [self.batch, self.c_in, self.c_out, *self.size, *self.out]
        return [*pointers, writer.pointer(self.y), *images, *self.window, CODES[self.activation]]

    def compute(self, runs: Runs) -> Tensor:
        return self.convolved(runs, min(self.c_in, self.c_out))
