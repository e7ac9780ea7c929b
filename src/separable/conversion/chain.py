"""A form at work: the chain of convolutions that stands in for a dense one, what it costs, and its factors' way in."""

import math
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from separable.conversion.forms import Form, Shape, Stage
from separable.conversion.patches import (
    DEPTHWISE,
    DEPTHWISE_TRANSPOSE,
    PLAIN,
    TRANSPOSED,
    is_transposed,
    write_weight,
)

Pad = tuple[int, ...] | None
_ZERO_PAD = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


def assemble(
    conv: Any, form: Form, rank: int, factors: list[Tensor] | None, bias: Tensor | None, pad: Pad = None
) -> nn.Sequential:
    """The chain in the place of `conv`: same input, same output.

    factors: their weights; without, weights are left as memory holds them. pad: zeros that the network puts around the
    input, as torch.nn.functional.pad has them: a chain that mixes channels first does that without them, and pads then.
    """
    shape = Shape.of(conv)
    stages = form.stages(shape, rank)
    parts: list[tuple[str, nn.Module]] = [
        (s.name, _convolution(conv, s, last=s is stages[-1], bias=bias is not None)) for s in stages
    ]
    if pad is not None and not stages[0].axes:
        kind: Any = _ZERO_PAD[len(conv.kernel_size) - 1]
        whole = pad + (0,) * (2 * len(conv.kernel_size) - len(pad))
        parts.insert(1, ("pad", kind(whole)))
        parts.insert(0, ("crop", kind(tuple(-n for n in whole))))
    chain = nn.Sequential(OrderedDict(parts))
    if factors is not None:
        write(chain, form.stage_weights(factors))
    if bias is not None:
        last: Any = chain[-1]
        last.bias.data.copy_(bias)
    return chain.requires_grad_(conv.weight.requires_grad).train(conv.training)


def write(chain: nn.Sequential, weights: list[Tensor]) -> None:
    """Put weights [G, O, C, K], one for each stage, into the chain."""
    convolutions = [stage for stage in chain if hasattr(stage, "weight")]
    for stage, weight in zip(convolutions, weights, strict=True):
        write_weight(stage, weight)


def _convolution(conv: Any, stage: Stage, last: bool, bias: bool) -> Any:
    dims, transposed = len(conv.kernel_size), is_transposed(conv)
    factory = {"device": conv.weight.device, "dtype": conv.weight.dtype}

    def at(values: tuple[int, ...] | str, otherwise: int) -> Any:
        return (
            values
            if isinstance(values, str)
            else tuple(v if i in stage.axes else otherwise for i, v in enumerate(values))
        )

    window = {"stride": at(conv.stride, 1), "padding": at(conv.padding, 0), "dilation": at(conv.dilation, 1)}
    if not stage.axes:
        window, transposed = {}, False
    elif not transposed:
        window["padding_mode"] = conv.padding_mode
    else:
        window["output_padding"] = at(conv.output_padding, 0)
    kernel = at(conv.kernel_size, 1)
    if stage.axes and stage.groups == min(stage.inputs, stage.outputs) > 1:
        kind: Any = (DEPTHWISE_TRANSPOSE if transposed else DEPTHWISE)[dims - 1]
    else:
        kind, window["groups"] = (TRANSPOSED if transposed else PLAIN)[dims - 1], stage.groups
    return nn.utils.skip_init(kind, stage.inputs, stage.outputs, kernel, **window, bias=last and bias, **factory)


Size = tuple[int, ...]


def macs(conv: Any, form: Form, rank: int, given: Size, made: Size, pad: Pad = None) -> int:
    """Multiply-adds for one example of spatial size `given`, `made` after: each stage works at the size it makes.

    A transposed one multiplies each position that it reads. What mixes channels first reads the input without its pad.
    """
    shape, size, total = Shape.of(conv), list(given), 0
    for i in range(len(pad or ()) // 2):
        size[-1 - i] -= pad[2 * i] + pad[2 * i + 1]  # type: ignore[index]
    for stage in form.stages(shape, rank):
        read = math.prod(size)
        for axis in stage.axes:
            size[axis] = made[axis]
        total += stage.weights(shape) * (read if is_transposed(conv) else math.prod(size))
    return total


def params(conv: Any, form: Form, rank: int, bias: bool) -> int:
    shape = Shape.of(conv)
    return sum(stage.weights(shape) for stage in form.stages(shape, rank)) + (conv.out_channels if bias else 0)
