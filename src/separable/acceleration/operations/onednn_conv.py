"""Dense convolution by oneDNN, torch's own library, on weights packed once: a form of DenseConv.

Taken where it is measured to be faster than our kernels. A program stops for it and goes on with what it made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from separable.acceleration.graph import ACTIVATIONS
from separable.acceleration.places import channels_last
from separable.acceleration.steps import ImageStep, Runs, seen
from separable.cost.subnormal import flushed


@dataclass(eq=False)
class OneDNNConv(ImageStep):
    kernel = "onednn_conv"

    groups: int = 1
    packed: Tensor | None = None

    @property
    def fits(self) -> bool:
        """Whether this build of torch has it, and it pads alike on both sides of an image that lies channels last."""
        here = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
        dims = zip(self.size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        made = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in dims)
        return here and made == self.out and self.x_strides[1] == 1

    def plain_weight(self) -> Tensor:
        """[O, I/groups, kh, kw]; numbers below the smallest normal one are zeros, as in native programs."""
        assert self.weight is not None
        return flushed(self.weight.detach().float().contiguous())

    def pack(self, weight: Tensor) -> Tensor:
        """As oneDNN keeps it, for images of any size."""
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.moves, self.groups, None)

    def run(self, runs: Runs) -> None:
        """Fill runs[y]: oneDNN adds to what stands there, so that no memory is taken and nothing is copied."""
        other = None if self.other is None else runs[self.other]
        first = self.activation if other is None or not self.activation_last else None
        y = runs[self.y]
        if other is None or first is not None:
            y.zero_()
        else:
            y.copy_(other)
        last = self.activation if first is None else None
        fused = "relu" if "relu" in (first, last) else None
        shape = (self.batch, self.c_out, *self.out)
        torch.ops.mkldnn._convolution_pointwise_.binary(
            *(seen(y, shape, channels_last(shape), 0), self.read_images(runs), self.packed, self.bias),
            *(*self.moves, self.groups, "add", 1.0, fused, [], ""),
        )
        if first is not None and fused is None:
            y.copy_(ACTIVATIONS[first](y))
        if first is not None and other is not None:
            y.add_(other)
        if last is not None and fused is None:
            y.copy_(ACTIVATIONS[last](y))

    @property
    def moves(self) -> tuple[list[int], list[int], list[int]]:
        """Padding, stride and dilation."""
        return list(self.padding), list(self.stride), list(self.dilation)
