"""The accelerated operations, each in a file of its own: how calls of torch become nodes, nodes steps, steps fields.

`KERNELS` is in the order of the kinds in csrc/program.h.
"""

from collections.abc import Mapping

from separable.acceleration.operations import convolution, view
from separable.acceleration.operations.dense_conv import DenseConv
from separable.acceleration.operations.depthwise_conv import DepthwiseConv
from separable.acceleration.operations.elementwise import Elementwise
from separable.acceleration.operations.layer_norm import LayerNorm
from separable.acceleration.operations.pad import Pad
from separable.acceleration.operations.pointwise_conv import PointwiseConv
from separable.acceleration.operations.pool import Pool
from separable.acceleration.operations.relayout import Relayout
from separable.acceleration.operations.resample import Resample
from separable.acceleration.operations.separable_conv import SeparableConv
from separable.acceleration.operations.transposed_conv import TransposedConv
from separable.acceleration.operations.winograd_conv import WinogradConv
from separable.acceleration.steps import Lowering, Step

KERNELS: tuple[type[Step], ...] = (
    DepthwiseConv,
    DenseConv,
    PointwiseConv,
    SeparableConv,
    Elementwise,
    LayerNorm,
    Pool,
    Relayout,
    WinogradConv,
    TransposedConv,
    Resample,
    Pad,
)
NUMBERS = {kind.kernel: number for number, kind in enumerate(KERNELS)}
_CALLS: list[Mapping[str, Lowering]] = [kind.calls for kind in KERNELS]
_CALLS += [convolution.CALLS, view.CALLS]
LOWERINGS: dict[str, Lowering] = {name: lowering for calls in _CALLS for name, lowering in calls.items()}
