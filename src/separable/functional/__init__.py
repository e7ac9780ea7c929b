"""Convolutions and the norm after them: arguments checked once in the user's words, then one way chosen to compute."""

from separable.functional import vmap  # noqa: F401 - rules for operators that the others define
from separable.functional.batch_norm import batch_norm
from separable.functional.depthwise_conv import depthwise_conv1d, depthwise_conv2d, depthwise_conv3d
from separable.functional.depthwise_conv_transpose import (
    depthwise_conv_transpose1d,
    depthwise_conv_transpose2d,
    depthwise_conv_transpose3d,
)
from separable.functional.separable_conv import separable_conv1d, separable_conv2d, separable_conv3d

__all__ = [
    "batch_norm",
    "depthwise_conv1d",
    "depthwise_conv2d",
    "depthwise_conv3d",
    "depthwise_conv_transpose1d",
    "depthwise_conv_transpose2d",
    "depthwise_conv_transpose3d",
    "separable_conv1d",
    "separable_conv2d",
    "separable_conv3d",
]
