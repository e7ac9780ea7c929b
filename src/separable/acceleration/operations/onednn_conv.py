"""Dense convolution by oneDNN, torch's own library, on weights packed once: a form of DenseConv.

Taken where it is measured to be faster than our kernels. A program stops for it and goes on with what it made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from separable.acceleration.graph import ACTIVATIONS
from separable.acceleration.places import channels_last
from separable.acceleration.steps import GroupedConv, Runs, as_view
from separable.cost.subnormal import flushed


@dataclass(eq=False)
class OneDNNConv(GroupedConv):
    kernel = "onednn_conv"

    packed: Tensor | None = None

    @property
    def fits(self) -> bool:
        """Whether this build of torch has it, and the image lies channels last and is padded alike on both sides.

        oneDNN dies of images that a window misses and of those that are narrower than a stride.
        """
        here = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
        return here and self.x_strides[1] == 1 and all(map(self._fits_along, (0, 1)))

    def _fits_along(self, i: int) -> bool:
        n, stride, padding = self.size[i], self.stride[i], self.padding[i]
        reach = self.dilation[i] * (self.kernel_size[i] - 1) + 1
        meets = padding < reach and (self.out[i] - 1) * stride < n + padding and n >= stride
        return meets and self.out[i] == (n + 2 * padding - reach) // stride + 1

    def plain_weight(self) -> Tensor:
        """[O, I/groups, kh, kw]; numbers below the smallest normal one are zeros, as in native programs."""
        assert self.weight is not None
        return flushed(self.weight.detach().float().contiguous())

    def pack(self, weight: Tensor) -> Tensor:
        """As oneDNN keeps it, for images of any size."""
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.moves, self.groups, None)

    def run(self, runs: Runs) -> None:
        """Fill runs[y]: oneDNN adds to what stands there, so that no memory is taken and nothing is copied."""
        y, other = runs[self.y], None if self.other is None else runs[self.other]
        adds_last = other is not None and self.activation is not None and not self.activation_last
        if other is None or adds_last:
            y.zero_()
        else:
            y.copy_(other)
        shape = (self.batch, self.c_out, *self.out)
        torch.ops.mkldnn._convolution_pointwise_.binary(
            *(as_view(y, shape, channels_last(shape), 0), self.read_images(runs), self.packed, self.bias),
            *(*self.moves, self.groups, "add", 1.0, None, [], ""),  # oneDNN's own ReLU makes zeros of what is no number
        )
        if self.activation == "relu":
            y.relu_()
        elif self.activation is not None:
            y.copy_(ACTIVATIONS[self.activation](y))
        if other is not None and adds_last:
            y.add_(other)

    @property
    def moves(self) -> tuple[list[int], list[int], list[int]]:
        """Padding, stride and dilation."""
        return list(self.padding), list(self.stride), list(self.dilation)
