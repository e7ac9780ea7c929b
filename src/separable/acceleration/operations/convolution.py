"""Convolutions of every kind become nodes here; the first kernel that fits one lays it out."""

from separable.acceleration.calls import Arguments, LeaveAloneError
from separable.acceleration.graph import Node
from separable.acceleration.layout import Layout
from separable.acceleration.operations.dense_conv import DenseConv
from separable.acceleration.operations.depthwise_conv import DepthwiseConv
from separable.acceleration.operations.pointwise_conv import PointwiseConv
from separable.functional.arguments import Window

_KERNELS = (DepthwiseConv, PointwiseConv, DenseConv)  # in the order in which they are asked; the last fits all


def _conv(a: Arguments) -> Node:
    images, weight = a.images("input"), a.filters()
    stride, dilation = a.pair("stride", 1), a.pair("dilation", 1)
    if isinstance(a["padding"], str):
        totals = [d * (k - 1) if a["padding"] == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pairs = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pairs = tuple((p, p) for p in a.pair("padding", 0))
    if 0 in images.shape[1:]:
        raise LeaveAloneError("its input is empty")
    node = a.node(lay_out, "input", weight=weight, bias=a.constant("bias"), window=Window(stride, pairs, dilation))
    node.groups, node.border, node.is_heavy = a["groups"], 0.0, True
    return node


def lay_out(layout: Layout, node: Node) -> None:
    next(kernel for kernel in _KERNELS if kernel.fits(node)).lay_out(layout, node)


CALLS = {"aten::conv1d": _conv, "aten::conv2d": _conv}
