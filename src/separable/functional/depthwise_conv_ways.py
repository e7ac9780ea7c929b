"""Which way a depthwise convolution takes, native or torch's own: what stands in its way, and where it is known to win.

Inference and captured graphs go by this knowledge; training begins with it and measures (depthwise_conv_choice.py).
"""

import torch
from torch import Tensor

from separable import _native
from separable.errors import InputError
from separable.functional import arguments, depthwise_conv_operator
from separable.functional.arguments import Window
from separable.functional.depthwise_conv_choice import Choice

# Numbers of a channels-last input from which our 3x3 forward alone beats torch's (benchmarks/kernels.py).
LARGE_FORWARD = 2**21
SMALL_MAP = 14 * 14  # places of a map below which torch's own 3x3 is as fast, where no kernel is made for its layout


def way(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    activation: str | None = None,
    impl: str = "auto",
) -> tuple[str, str]:
    """ "native" or "reference", and why: without gradients; with them in a captured graph, which measures nothing.

    Raises:
        InputError: `impl` is "native" and the native kernels cannot run.
    """
    obstacle = obstacle_to_native(input, weight, bias)
    if impl == "native":
        if obstacle:
            raise InputError("impl", impl, f"cannot run here: {obstacle}")
        return "native", "asked for"
    if obstacle:
        return "reference", obstacle
    if native_wins(input, weight, stride, activation, has_derivatives(input, weight, bias)):
        return "native", "known to win on this kind of shape"
    return "reference", "torch's own is known to be as fast for such a kernel, map and purpose"


def obstacle_to_native(input: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """Why the native kernels cannot compute this; empty where they can."""
    if _native.missing:
        return _native.missing
    if input.device.type != "cpu":
        return f"the native kernels run on the CPU, and the input is on {input.device}"
    others = [t for t in (weight, bias) if t is not None]
    if input.dtype not in (torch.float32, torch.bfloat16) or any(t.dtype != input.dtype for t in others):
        return f"the native kernels compute float32 and bfloat16, and the input is {input.dtype}"
    if any(k > depthwise_conv_operator.MAX_KERNEL for k in arguments.sizes(weight)[2:]):
        return f"the native kernels go to {depthwise_conv_operator.MAX_KERNEL} taps in each dimension"
    filters, inner = arguments.sizes(weight)[:2]
    multiplier = max(filters // arguments.sizes(input)[1], inner)
    if multiplier > _native.lanes():
        return f"depth multipliers go to {_native.lanes()} with {_native.isa()}"
    return _native.obstacle()


def native_wins(input: Tensor, weight: Tensor, stride: tuple[int, ...], activation: str | None, trains: bool) -> bool:
    """True where the native kernels are known to beat torch's own (benchmarks/kernels.py); trains: with gradients.

    torch's oneDNN is as good only at what networks of 2017 need most: 2-D, 3x3, multiplier 1. There, of channels-last
    maps, its forward is as fast with a stride, in bfloat16 and on what fits a cache, and its gradients are slower; of
    other maps it is as good with a stride on small ones, and at stride 1 in bfloat16. A free size of a captured graph
    counts as small.
    """
    kernel = tuple(weight.shape[2:])
    several = weight.shape[1] > 1 or weight.shape[0] != input.shape[1]
    if input.dim() != 4 or several or max(kernel) > 3 or kernel == (1, 1):
        return True
    last = depthwise_conv_operator.is_channels_last(input)
    if last and kernel != (3, 3):
        return False
    if last and stride in ((1, 1), (2, 2)) and arguments.certain(input.shape[1] >= _native.lanes()):
        clamps = activation in ("relu", "relu6") or (activation is not None and input.dtype == torch.float32)
        if trains or clamps:
            return True
        plain = stride == (1, 1) and input.dtype == torch.float32
        return plain and arguments.certain(input.numel() >= LARGE_FORWARD)
    if input.dtype == torch.bfloat16 and max(stride) == 1:
        return False
    if max(stride) == 1 and not last:
        return True  # kernels along the rows: 2 to 3 times torch's own, on maps of 7x7 as on those of 112x112
    return arguments.certain(input.shape[2] * input.shape[3] >= SMALL_MAP)


def choice_of(input: Tensor, weight: Tensor, window: Window, groups: int, impl: str = "auto") -> Choice:
    """Which way each direction takes in training, where the native kernels can run; measured when it is first used."""
    wins = impl == "native" or native_wins(input, weight, window.stride, None, True)
    dense = input.is_contiguous() or (input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last))
    measures = impl == "auto" and input.dim() == 4 and dense and all(a == b for a, b in window.pairs)
    flat = (window.stride, [side for pair in window.pairs for side in pair], window.dilation)
    return Choice(flat, groups, "native" if wins else "reference", measures)


def has_derivatives(*tensors: Tensor | None) -> bool:
    """Whether a result of these is to have derivatives."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
