"""What a separable layer of the same shape would save of a dense one: on paper, and measured on the same input."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from separable.cost.count import LayerCount, count
from separable.cost.timing import interleaved_ms
from separable.layers import SeparableConv1d, SeparableConv2d, SeparableConv3d

_SEPARABLE = {1: SeparableConv1d, 2: SeparableConv2d, 3: SeparableConv3d}


@dataclass
class Saving:
    """A dense layer and its separable twin (depthwise first, depth multiplier 1, random weights), one call of each."""

    dense_macs: int
    macs: int
    dense_params: int
    params: int
    dense_ms: float
    ms: float

    @property
    def macs_ratio(self) -> float:
        """The separable layer's MACs, in the dense layer's: about 1/C_out + 1/k²."""
        return self.macs / self.dense_macs if self.dense_macs else 1.0

    @property
    def ms_ratio(self) -> float:
        """The separable layer's measured time, in the dense layer's; above 1 it is slower."""
        return self.ms / self.dense_ms

    def in_words(self) -> str:
        """Share of the MACs / share of the time."""
        return f"{self.macs_ratio:.0%} / {self.ms_ratio:.0%}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "macs_ratio": self.macs_ratio, "ms_ratio": self.ms_ratio}


def compare_with_separable(call: tuple, dense: LayerCount, repeats: int) -> Saving:
    """Time a dense convolution, as aten was called, in turn with its separable twin; medians."""
    x, weight, bias, stride, padding, dilation = call[:6]
    twin = _twin(x, weight, bias, stride, padding, dilation)
    counted = count(twin, x)
    calls: dict[str, Callable[[], object]] = {
        "dense": lambda: torch.ops.aten.convolution.default(*call),
        "separable": lambda: twin(x),
    }
    taken_ms = interleaved_ms(calls, repeats, warmup=1, device=x.device)
    return Saving(
        dense_macs=dense.macs // dense.calls,
        macs=counted.macs,
        dense_params=weight.numel() + (0 if bias is None else bias.numel()),
        params=counted.params,
        dense_ms=taken_ms["dense"],
        ms=taken_ms["separable"],
    )


def _twin(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation) -> nn.Module:
    """x [N, C_in, ...], weight [C_out, C_in, k...] of the dense layer."""
    out_channels, in_channels, *kernel = weight.shape
    return _SEPARABLE[len(kernel)](
        in_channels, out_channels, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), bias is not None,
        device=weight.device, dtype=weight.dtype,
    ).eval()  # fmt: skip
