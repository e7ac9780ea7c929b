"""Dense 3x3 convolution of stride 1 by Winograd's minimal filtering: csrc/winograd_conv.h. A form of DenseConv."""

from dataclasses import dataclass

from torch import Tensor

from separable.acceleration.steps import ImageStep
from separable.acceleration.writer import CODES, Writer


@dataclass(eq=False)
class WinogradConv(ImageStep):
    kernel = "winograd_conv"
    tile: int = 4  # outputs in each direction, 4 or 2

    def weights(self) -> list[Tensor]:
        assert self.weight is not None
        return [self.weight.permute(0, 2, 3, 1).float().contiguous()]

    def fields(self, writer: Writer) -> list[int]:
        pointers = [writer.pointer(self.x, self.x_offset), writer.weight(), writer.constants.vector(self.bias)]
        pointers += [writer.pointer(self.other), writer.pointer(self.y)]
        images = [self.batch, self.c_in, self.c_out, *self.size, *self.out, *self.x_strides]
        return [*pointers, *images, *self.padding, CODES[self.activation], int(self.activation_last), self.tile]
