"""How the networks of this room are fitted to a task: fewer channels, or images smaller than a paper's 224 pixels."""

import math
from collections.abc import Sequence

from separable.errors import InputError


def scale_channels(channels: int, width_multiplier: float) -> int:
    """Channels times the multiplier, as the nearest multiple of 8 that keeps at least nine tenths of them.

    Source: the width multiplier is Howard et al. 2017, arXiv:1704.04861, section 3.3; the rounding is the one that
    Sandler et al. published with MobileNetV2, arXiv:1801.04381.

    >>> [scale_channels(24, multiplier) for multiplier in (1.0, 0.75, 0.35)]
    [24, 24, 8]
    """
    if not 0 < width_multiplier < math.inf:
        raise InputError("width_multiplier", width_multiplier, "must be a positive number")
    scaled = channels * width_multiplier
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def thin_strides(strides: Sequence[int], reduction: int) -> list[int]:
    """The strides of a network in order, the first of them made 1 until all together shrink an image `reduction` times.

    Strides do not touch the weights, so the same weights fit every reduction.

    >>> thin_strides([2, 1, 2, 2, 2, 2], reduction=8)
    [1, 1, 1, 2, 2, 2]
    """
    total, thinned = math.prod(strides), list(strides)
    allowed = [total >> step for step in range(total.bit_length())]  # every stride is 1 or 2
    if reduction not in allowed:
        raise InputError("reduction", reduction, f"must be one of {', '.join(map(str, allowed))}")
    for i in range(len(thinned)):
        if math.prod(thinned) > reduction:
            thinned[i] = 1
    return thinned
