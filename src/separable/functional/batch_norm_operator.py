"""torch.ops.separable.batch_norm and its backward: schema, shapes and derivatives of batch norm in a training step.

`batch_norm` gives y = act(norm(input)), the mean and the variance over all places of each channel; the last two carry
no derivative. Only its input is kept for backward. Input and gradient are dense channels-last, as the results are.
Without the library the same operators run torch's own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from separable import _native
from separable.functional import arguments
from separable.functional.depthwise_conv_operator import strides

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_ACTIVATIONS = (None, *arguments.ACTIVATIONS)  # the numbers of csrc/kernels.h


def dense_last(x: Tensor) -> Tensor:
    """x [N, C, ...] where channels lie together and nothing lies between places: x itself where it does so."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def reference(x, weight, bias, eps, activation) -> Tensor:
    """The same in torch's own operators, which have derivatives of any order."""
    y = F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    return arguments.activate(y, _ACTIVATIONS[activation])


def _last_like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, strides(x.shape, True), dtype=x.dtype, device=x.device)


def _forward(x, weight, bias, eps, activation):
    y = _last_like(x).copy_(reference(x, weight, bias, eps, activation))
    variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return y, mean, variance


def _fake(x, weight, bias, eps, activation):
    return x.new_empty_strided(x.shape, strides(x.shape, True)), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _backward(grad, x, weight, bias, mean, variance, eps, activation):
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    with torch.enable_grad():
        leaves = [
            t.detach().requires_grad_()
            for t in (x, ones if weight is None else weight, zeros if bias is None else bias)
        ]
        gx, gw, gb = torch.autograd.grad(reference(*leaves, eps, activation), leaves, grad)  # type: ignore[call-arg]
    return _last_like(x).copy_(gx), gw, gb


def _fake_backward(grad, x, weight, bias, mean, variance, eps, activation):
    return _fake(x, weight, bias, eps, activation)


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, ctx.eps, ctx.activation = inputs
    _, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, mean, variance)


def _gradients(ctx, grad, *of_statistics):
    x, weight, bias, mean, variance = ctx.saved_tensors
    if grad is None:
        return None, None, None, None, None
    if torch.is_grad_enabled():  # a derivative of these gradients will be asked for: torch's operators have them
        inputs = [x, weight, bias]
        asked = [t for t in inputs if t is not None and t.requires_grad]
        y = reference(x, weight, bias, ctx.eps, ctx.activation)
        found = iter(torch.autograd.grad(y, asked, grad, create_graph=True))
        gradients = [next(found) if t is not None and t.requires_grad else None for t in inputs]
        return (*gradients, None, None)
    backward = torch.ops.separable.batch_norm_backward
    made = backward(dense_last(grad), x, weight, bias, mean, variance, ctx.eps, ctx.activation)
    gradients = [g if needed else None for g, needed in zip(made, ctx.needs_input_grad, strict=False)]
    return (*gradients, None, None)


_library = _native.operators
_AFFINE, _HOW = "Tensor? weight, Tensor? bias", "float eps, int activation"
_library.define(f"batch_norm(Tensor input, {_AFFINE}, {_HOW}) -> (Tensor, Tensor, Tensor)", tags=_TAGS)
_library.define(
    f"batch_norm_backward(Tensor grad, Tensor input, {_AFFINE}, Tensor mean, Tensor variance, {_HOW})"
    " -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
for _name, _implementation, _shapes in (
    ("batch_norm", _forward, _fake),
    ("batch_norm_backward", _backward, _fake_backward),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"separable::{_name}", _shapes, lib=_library)
torch.library.register_autograd("separable::batch_norm", _gradients, setup_context=_keep, lib=_library)
