"""Batch norm with the activation after it, for training channels-last on a CPU.

Source: Ioffe and Szegedy 2015, "Batch Normalization", arXiv:1502.03167, section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from separable import _native
from separable.errors import InputError
from separable.functional import arguments, batch_norm_operator
from separable.functional.arguments import seen_whole
from separable.functional.depthwise_conv_operator import is_channels_last, number_of

# Numbers in the input from which a native step wins: without an activation, with one, and of a sequence, for which
# torch has no channels-last kernel as it has for images and volumes. A call through autograd costs some 0.1 ms more
# than torch's own, and without an activation both move the same memory. Measured forward and backward on maps of 1x1 to
# 112x112, 16 to 1280 channels, one thread of an Intel Xeon; without an activation on memory that has left the caches
# between forward and backward, as in a whole step: native is 2 to 22 % faster from 2**20, and on a map that is still in
# cache torch's is ahead by up to a fifth. The steps of benchmarks/train.py gain 1 to 3 % by it.
LARGE_ALONE, LARGE, LARGE_SEQUENCE = 2**20, 2**18, 2**14


@seen_whole
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """torch.nn.functional.batch_norm, then an activation; in training one pass that keeps its input alone.

    Args:
        input: [N, C, ...].
        running_mean, running_var: [C], updated in place in training; None keeps none.
        weight, bias: [C], or None for ones and zeros.
        training: normalize by this batch's mean and variance, else by the running ones.
        momentum: of the update: running = (1 - momentum) * running + momentum * this batch's, the variance unbiased.
        activation: None, "relu", "relu6", "silu", "hard_swish" or "gelu" (erf), applied to the result.
        impl: "auto" takes the native kernels in eager training where input lies channels last and is large enough for
            them to win, "reference" plain torch, "native" these kernels (float32).

    Returns:
        [N, C, ...]; native in channels-last memory.

    Raises:
        InputError: an argument breaks one of these rules.

    >>> import torch
    >>> y = batch_norm(torch.randn(8, 4, 6, 6), None, None, training=True, activation="relu")
    >>> y.shape, bool((y >= 0).all())
    (torch.Size([8, 4, 6, 6]), True)
    """
    arguments.check_impl(impl, native=True)
    arguments.check_activation("activation", activation)
    held = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, tensor in held.items():
        if tensor is not None and input.dim() > 1 and tuple(arguments.sizes(tensor)) != arguments.sizes(input)[1:2]:
            rule = f"must be [{arguments.sizes(input)[1]}], one number for each channel of the input"
            raise arguments.wrong_shape(name, tensor, rule)
    if impl != "reference":
        obstacle = obstacle_to_native(input, (weight, bias), training)
        if not obstacle and (impl == "native" or native_wins(input, activation)):
            return _native_norm(input, running_mean, running_var, weight, bias, momentum, eps, activation)
        if obstacle and impl == "native":
            raise InputError("impl", impl, f"cannot run here: {obstacle}")
    y = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return arguments.activate(y, activation)


def obstacle_to_native(input: Tensor, affine: tuple[Tensor | None, Tensor | None], training: bool) -> str:
    """Why the native kernels cannot compute this; empty where they can."""
    if not training:
        return "the native batch norm is that of training; without it `accelerate` folds norms into convolutions"
    if input.device.type != "cpu":
        return f"the native kernels run on the CPU, and the input is on {input.device}"
    if any(t is not None and t.dtype != torch.float32 for t in (input, *affine)):
        return f"the native batch norm computes float32, and the input is {input.dtype}"
    if _native.obstacle():
        return _native.obstacle()
    if input.dim() < 2 or input.numel() <= input.shape[1]:
        return "a batch norm needs more than one value for each channel"
    return ""


def native_wins(input: Tensor, activation: str | None) -> bool:
    """True in eager mode on channels-last memory that is large enough.

    A compiler joins torch's own norm with what stands around it; a dispatch mode watches operation by operation.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    sequence = input.dim() == 3 and not input.is_contiguous()
    least = LARGE_SEQUENCE if sequence else LARGE if activation else LARGE_ALONE
    return is_channels_last(input) and input.numel() >= least


def _native_norm(input, running_mean, running_var, weight, bias, momentum, eps, activation) -> Tensor:
    x = batch_norm_operator.dense_last(input)
    y, mean, variance = torch.ops.separable.batch_norm(x, weight, bias, eps, number_of(activation))
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    return y
