"""Named edges of a dense convolution, each the smallest that shows it: kind, (in, out, kernel), options."""

from typing import Any

import torch
from torch import Tensor, nn

CASES: dict[str, tuple[Any, tuple, dict[str, Any]]] = {
    "plain": (nn.Conv2d, (6, 10, 3), {"padding": 1}),
    "stride": (nn.Conv2d, (6, 10, 3), {"stride": 2, "padding": 1}),
    "unequal stride and padding": (nn.Conv2d, (4, 5, (3, 5)), {"stride": (2, 1), "padding": (0, 2)}),
    "stride beyond the kernel": (nn.Conv2d, (4, 5, 2), {"stride": 3}),
    "dilation": (nn.Conv2d, (4, 7, 3), {"dilation": (2, 3), "padding": 2}),
    "same, even kernel": (nn.Conv2d, (4, 7, (2, 4)), {"padding": "same"}),
    "same, even kernel, dilation": (nn.Conv2d, (4, 7, (2, 3)), {"padding": "same", "dilation": 3}),
    "valid": (nn.Conv2d, (4, 7, 3), {"padding": "valid"}),
    "reflect": (nn.Conv2d, (4, 7, 3), {"padding": 1, "padding_mode": "reflect"}),
    "replicate": (nn.Conv2d, (4, 7, 3), {"padding": (2, 1), "padding_mode": "replicate"}),
    "circular": (nn.Conv2d, (4, 7, 5), {"padding": 2, "padding_mode": "circular"}),
    "same, reflect": (nn.Conv2d, (4, 7, (3, 4)), {"padding": "same", "padding_mode": "reflect"}),
    "no bias": (nn.Conv2d, (4, 7, 3), {"bias": False}),
    "fewer outputs than taps": (nn.Conv2d, (9, 2, 3), {"padding": 1}),
    "one channel in": (nn.Conv2d, (1, 8, 3), {"padding": 1}),
    "one channel out": (nn.Conv2d, (8, 1, 3), {"padding": 1}),
    "groups": (nn.Conv2d, (6, 9, 3), {"groups": 3, "padding": 1, "stride": 2}),
    "flat kernel": (nn.Conv2d, (4, 6, (1, 5)), {"padding": (0, 2)}),
    "1-D": (nn.Conv1d, (5, 9, 7), {"stride": 2, "padding": 3}),
    "1-D, same, dilation": (nn.Conv1d, (5, 9, 4), {"dilation": 3, "padding": "same"}),
    "1-D, groups": (nn.Conv1d, (6, 8, 5), {"groups": 2, "padding": 2}),
    "3-D": (nn.Conv3d, (3, 5, (2, 3, 3)), {"stride": (1, 2, 1), "padding": (0, 1, 1)}),
    "3-D, groups": (nn.Conv3d, (4, 6, 3), {"groups": 2, "dilation": (1, 2, 1)}),
    "transposed": (nn.ConvTranspose2d, (6, 10, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed, stride 1": (nn.ConvTranspose2d, (4, 5, (3, 2)), {"padding": (2, 0)}),
    "transposed, dilation": (
        nn.ConvTranspose2d,
        (4, 5, 3),
        {"stride": (1, 3), "dilation": 2, "output_padding": (0, 2)},
    ),
    "transposed, groups": (nn.ConvTranspose2d, (6, 9, 4), {"groups": 3, "stride": 2, "padding": 1}),
    "transposed, 1-D": (nn.ConvTranspose1d, (5, 3, 8), {"stride": 4, "padding": 2}),
    "transposed, 3-D": (nn.ConvTranspose3d, (3, 4, 2), {"stride": 2, "groups": 1}),
}


def build(case: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    """The convolution with random weights, and an input [2, C, ...] for it."""
    kind, sizes, options = CASES[case]
    conv = kind(*sizes, **options, dtype=dtype)
    return conv, torch.randn(2, sizes[0], *([11, 10, 6][: len(conv.kernel_size)]), dtype=dtype)
