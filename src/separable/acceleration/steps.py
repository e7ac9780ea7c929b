"""What every step is: one run of a kernel, that reads and writes dense runs of floats, channels innermost.

An accelerated operation derives its step from `Step` in its own file of `operations` and answers there what the
machinery asks of it: how torch computes it, which weights are packed, which fields its kernel reads.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from separable.acceleration.calls import Arguments
from separable.acceleration.graph import ACTIVATIONS, Node
from separable.acceleration.places import Memory, Strides
from separable.acceleration.tape import Call
from separable.acceleration.writer import CODES, Writer

_FEW_FACTORS = 64  # of a sum, as a stem's on three channels: rounding them saves nothing

Lowering = Callable[[Arguments], Node]
Runs = dict[Memory, Tensor]  # flat float32 tensors


@dataclass(eq=False)
class Step:
    """One run of a kernel."""

    kernel: ClassVar[str]  # the stem in csrc
    calls: ClassVar[dict[str, Lowering]] = {}  # aten names, and how a call becomes a node
    takes_factors: ClassVar[bool] = False  # its weight [O, ...] and bias [O] may be multiplied and added to, by channel
    takes_activation: ClassVar[bool] = False
    takes_residual: ClassVar[bool] = False  # `other`, added before or after the activation

    x: Memory
    y: Memory
    covers: list[Call]
    x_offset: int = 0
    y_offset: int = 0
    other: Memory | None = None  # what is added: a residual
    gate: Memory | None = None  # what it is multiplied by
    sums: Memory | None = None  # of a chain: what it leaves for the mean over each image
    weight: Tensor | None = None
    bias: Tensor | None = None
    activation: str | None = None
    activation_last: bool = True  # after `other` is added
    c_in: int = 0
    c_out: int = 0
    parts: list["Step"] = field(default_factory=list)  # of a chain: the steps in it

    @property
    def name(self) -> str:
        """As reports call it."""
        return self.kernel

    @property
    def reads(self) -> list[Memory]:
        return [m for m in (self.x, self.other, self.gate) if m is not None]

    @property
    def floats_read(self) -> int:
        """Of `x`."""
        raise NotImplementedError

    @property
    def floats_made(self) -> int:
        raise NotImplementedError

    def run_as(self) -> "Step":
        """The step that the native library is given: another where another kernel computes the same faster."""
        return self

    def weights(self) -> list[Tensor]:
        """What is packed, dense, in the order in which `fields` asks the writer for weights."""
        return []

    def fields(self, writer: Writer) -> list[int]:
        """As program.cpp reads them: the members of the kernel's argument struct."""
        raise NotImplementedError

    def compute(self, runs: Runs) -> Tensor:
        """By torch, without activation and `other`."""
        raise NotImplementedError

    def joined(self, result: Tensor, other: Tensor) -> Tensor:
        return result + other

    def run(self, runs: Runs) -> None:
        """By torch: adds what it makes to `runs`."""
        result = self.compute(runs)
        if self.activation is not None and not (self.other is not None and self.activation_last):
            result = ACTIVATIONS[self.activation](result)
        if self.other is not None:
            result = self.joined(result.reshape(-1), runs[self.other])
            if self.activation is not None and self.activation_last:
                result = ACTIVATIONS[self.activation](result)
        runs[self.y] = result.reshape(-1)


@dataclass(eq=False)
class RowStep(Step):
    """Of rows of c_in floats, `x_stride` apart (0: c_in), to rows of c_out; `image_rows` of them share a gate."""

    rows: int = 0
    x_stride: int = 0
    image_rows: int = 0

    @property
    def floats_read(self) -> int:
        return self.rows * self.c_in

    @property
    def floats_made(self) -> int:
        return self.rows * self.c_out

    def read_rows(self, runs: Runs) -> Tensor:
        """[rows, c_in]"""
        return as_view(runs[self.x], (self.rows, self.c_in), (self.x_stride or self.c_in, 1), self.x_offset)

    def gated(self, runs: Runs, x: Tensor) -> Tensor:
        if self.gate is None:
            return x
        images = self.rows // max(self.image_rows, 1)
        product = x.view(images, -1, self.c_in) * runs[self.gate].view(images, 1, self.c_in)
        return product.view(self.rows, self.c_in)


@dataclass(eq=False)
class ImageStep(Step):
    """Of [batch, c_in, *size] to [batch, c_out, *out], by windows; `padding` is what lies before the image."""

    batch: int = 0
    size: tuple[int, int] = (1, 1)
    out: tuple[int, int] = (1, 1)
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    x_strides: Strides = ()  # of [N, C, H, W]; (): channels last

    @property
    def floats_read(self) -> int:
        return self.batch * self.c_in * self.size[0] * self.size[1]

    @property
    def floats_made(self) -> int:
        return self.batch * self.c_out * self.out[0] * self.out[1]

    @property
    def window(self) -> list[int]:
        return [*self.kernel_size, *self.stride, *self.padding, *self.dilation]

    @property
    def pads(self) -> bool:
        """Whether a window reaches beyond the image."""
        return any(before > 0 or after > 0 for before, after in self.border)

    @property
    def border(self) -> list[tuple[int, int]]:
        """Of height and width, what windows need before and after the image."""
        reach = [(self.out[i] - 1) * self.stride[i] + self.dilation[i] * (self.kernel_size[i] - 1) + 1 for i in (0, 1)]
        return [(self.padding[i], reach[i] - self.size[i] - self.padding[i]) for i in (0, 1)]

    def read_images(self, runs: Runs) -> Tensor:
        """[N, C, H, W]"""
        height, width = self.size
        strides = self.x_strides or (height * width * self.c_in, 1, width * self.c_in, self.c_in)
        return as_view(runs[self.x], (self.batch, self.c_in, *self.size), strides, self.x_offset)

    def padded(self, x: Tensor, value: float) -> Tensor:
        """With the border that the windows need."""
        (top, bottom), (left, right) = self.border
        return F.pad(x, [left, right, top, bottom], value=value)

    def convolved(self, runs: Runs, groups: int) -> Tensor:
        """[N, H, W, O]"""
        assert self.weight is not None
        x = self.padded(self.read_images(runs), 0.0)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, groups).permute(0, 2, 3, 1)


@dataclass(eq=False)
class GroupedConv(ImageStep):
    """A convolution of all channels together, or of groups of them."""

    groups: int = 1

    def fields(self, writer: Writer) -> list[int]:
        pointers = [writer.pointer(self.x, self.x_offset), writer.weight(), writer.constants.vector(self.bias)]
        pointers += [writer.pointer(self.other), writer.pointer(self.y)]
        images = [self.batch, self.c_in, self.c_out, self.groups, *self.size, *self.out, *self.x_strides]
        exact = self.c_in * self.kernel_size[0] * self.kernel_size[1] < _FEW_FACTORS or self.groups > 1
        ends = [CODES[self.activation], int(self.activation_last), 0 if exact else writer.product]
        return [*pointers, *images, *self.window, *ends]


def as_view(run: Tensor, shape: tuple[int, ...], strides: Strides, offset: int) -> Tensor:
    """A run of memory as a tensor of this shape, `offset` floats from its beginning, wherever in a storage that is."""
    return run.as_strided(shape, strides, int(run.storage_offset()) + offset)


def packed_alike(weight: Tensor | None) -> list[Tensor]:
    """What `Step.weights` gives of a map: [O, ...] as [O, all others], float32."""
    assert weight is not None
    return [weight.flatten(1).float().contiguous()]
