"""Layers: parameters plus one call of `functional`."""

from separable.layers.blocks import (
    ConvNeXtBlock,
    InvertedResidual,
    SqueezeExcite,
    XceptionBlock,
    mobilenet_v1_block,
)
from separable.layers.depthwise import DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d
from separable.layers.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from separable.layers.readings import GatedSeparableConv2d, StackedConv2d
from separable.layers.separable import (
    DepthwiseConvTranspose1d,
    DepthwiseConvTranspose2d,
    DepthwiseConvTranspose3d,
    SeparableConv1d,
    SeparableConv2d,
    SeparableConv3d,
    SeparableConvTranspose1d,
    SeparableConvTranspose2d,
    SeparableConvTranspose3d,
)

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConvNeXtBlock",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "DepthwiseConvTranspose1d",
    "DepthwiseConvTranspose2d",
    "DepthwiseConvTranspose3d",
    "GatedSeparableConv2d",
    "InvertedResidual",
    "SeparableConv1d",
    "SeparableConv2d",
    "SeparableConv3d",
    "SeparableConvTranspose1d",
    "SeparableConvTranspose2d",
    "SeparableConvTranspose3d",
    "SqueezeExcite",
    "StackedConv2d",
    "XceptionBlock",
    "mobilenet_v1_block",
]
