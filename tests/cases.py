"""The grid: named edges of depthwise and separable convolution, each the smallest shape that shows it.

A case is one row of sizes; tests loop over DEPTHWISE and over orders, biases and activations where these matter.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Sizes of one convolution: input [batch, channels, *size], depth multiplier, C_out, kernel and its options."""

    name: str
    batch: int
    channels: int
    multiplier: int
    out_channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def dims(self) -> int:
        return len(self.size)

    @property
    def taps(self) -> int:
        """Products in one output of the depthwise half."""
        return torch.Size(self.kernel).numel()

    def input(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(self.batch, self.channels, *self.size, dtype=dtype)

    def depthwise(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Weight [C*m, 1, k...] and bias."""
        filters = self.channels * self.multiplier
        return torch.randn(filters, 1, *self.kernel, dtype=dtype), torch.randn(filters, dtype=dtype)

    def separable(self, order: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dw_weight, pw_weight, dw_bias, pw_bias; the pointwise half scaled to keep outputs of unit scale."""
        m, ones = self.multiplier, (1,) * self.dims
        if order == "depthwise_first":
            dw = torch.randn(self.channels * m, 1, *self.kernel, dtype=dtype)
            pw = torch.randn(self.out_channels, self.channels * m, *ones, dtype=dtype)
        else:
            dw = torch.randn(self.out_channels, m, *self.kernel, dtype=dtype)
            pw = torch.randn(self.out_channels * m, self.channels, *ones, dtype=dtype)
        pw = pw / pw.shape[1] ** 0.5
        return dw, pw, torch.randn(len(dw), dtype=dtype), torch.randn(len(pw), dtype=dtype)


def _case(name, shape, size, kernel, **options) -> Case:
    batch, channels, multiplier, out_channels = shape
    return Case(name, batch, channels, multiplier, out_channels, size, kernel, options)


DEPTHWISE = [
    _case("plain", (2, 16, 1, 24), (14, 14), (3, 3), padding=1),
    _case("lanes-1", (1, 15, 1, 31), (7, 9), (3, 3), padding=1),
    _case("lanes", (1, 16, 1, 32), (7, 9), (3, 3), padding=1),
    _case("lanes+1", (1, 17, 1, 33), (7, 9), (3, 3), padding=1),
    _case("one_channel", (1, 1, 1, 1), (7, 7), (3, 3), padding=1),
    _case("many_channels", (1, 960, 1, 160), (7, 7), (3, 3), padding=1),
    *[_case(f"multiplier_{m}", (2, 12, m, 20), (10, 11), (3, 3), padding=1) for m in (2, 3, 4, 6)],
    _case("stride_2", (2, 24, 1, 40), (15, 16), (3, 3), stride=2, padding=1),
    _case("stride_1_2", (2, 24, 1, 40), (15, 16), (3, 3), stride=(1, 2), padding=1),
    _case("stride_3", (2, 24, 1, 40), (15, 16), (3, 3), stride=3, padding=1),
    _case("dilation", (1, 8, 1, 8), (17, 15), (3, 3), padding=2, dilation=2),
    _case("stride_and_dilation", (1, 8, 1, 8), (17, 15), (3, 3), stride=2, padding=2, dilation=(2, 3)),
    *[
        _case(name, (1, 20, 1, 20), (12, 12), (k, k), padding="same")
        for name, k in (("five", 5), ("seven", 7), ("thirty_one", 31))
    ],
    _case("even_kernel_same", (1, 6, 1, 6), (9, 8), (2, 4), padding="same"),
    _case("even_kernel_same_stride_2", (1, 6, 1, 6), (9, 8), (2, 4), stride=2, padding="same"),
    _case("same_stride_beyond_kernel", (1, 6, 1, 6), (9, 8), (2, 1), stride=3, padding="same"),
    _case("asymmetric", (1, 6, 1, 6), (9, 8), (3, 5), padding=((2, 0), (1, 3))),
    _case("valid", (1, 6, 1, 6), (9, 8), (3, 5), padding="valid"),
    _case("one_row", (1, 8, 1, 8), (1, 9), (3, 3), padding="same"),
    _case("one_pixel", (1, 8, 1, 8), (1, 1), (3, 3), padding="same"),
    _case("kernel_larger_than_input", (1, 8, 1, 8), (2, 2), (7, 7), padding="same"),
    _case("padding_beyond_the_kernel", (1, 8, 1, 8), (5, 5), (3, 3), padding=4),
    _case("stride_2_five", (1, 24, 1, 8), (13, 22), (5, 5), stride=2, padding=((1, 2), (3, 0))),
    _case("stride_2_seven", (1, 24, 1, 8), (16, 17), (7, 7), stride=2, padding=3),
    _case("kernel_larger_than_input_more_channels", (1, 24, 1, 8), (2, 2), (7, 7), padding="same"),
    _case("padding_beyond_the_kernel_more_channels", (1, 24, 1, 8), (5, 5), (3, 3), stride=2, padding=4),
    _case("multiplier_2_more_channels", (2, 20, 2, 8), (8, 18), (3, 3), padding=1),
    _case("multiplier_4_stride_2", (1, 20, 4, 8), (8, 17), (3, 3), stride=2, padding=((0, 1), (1, 1))),
    _case("causal", (2, 48, 1, 32), (65,), (4,), padding="causal"),
    _case("causal_dilation", (2, 48, 1, 32), (65,), (4,), padding="causal", dilation=8),
    _case("long", (2, 48, 1, 32), (2048,), (31,), padding="causal"),
    _case("volume", (1, 10, 2, 12), (6, 7, 8), (3, 3, 3), padding=1),
    _case("volume_flat_kernel", (1, 10, 2, 12), (6, 7, 8), (1, 3, 5), stride=(1, 2, 2), padding=0),
    _case("batch_0", (0, 8, 1, 8), (8, 8), (3, 3), padding=1),
]

SMALL = [case for case in DEPTHWISE if case.batch and case.channels <= 12 and case.taps <= 27]


def layouts(x: Tensor) -> dict[str, Tensor]:
    """x [N, C, H, W] in every way of lying in memory; "expanded" repeats its first example."""
    wide = torch.randn(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    channels = torch.randn(x.shape[0], x.shape[1] + 5, *x.shape[2:], dtype=x.dtype)
    channels[:, 3 : 3 + x.shape[1]] = x
    last = channels.contiguous(memory_format=torch.channels_last)
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced_pixels": wide[..., ::2],
        "sliced_channels": channels[:, 3 : 3 + x.shape[1]],
        "sliced_channels_last": last[:, 3 : 3 + x.shape[1]],
        "expanded": x[:1].expand(x.shape),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }
