"""Depthwise convolution with derivatives, as eager mode runs it: each direction by the way that `Choice` knows to win.

The same as the operator `separable::depthwise_conv`, which captured graphs hold, with less around it: torch's wrapper
of operators with derivatives written in Python costs some 50 microseconds a call.
"""

from typing import Any

import torch
from torch import Tensor

from separable.functional.depthwise_conv_choice import Choice, Mask


class Training(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, choice: Choice) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.choice = choice
        return choice.compute(choice.forward_way(x, weight, bias), x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        mask: Mask = ctx.needs_input_grad[:3]
        found = _gradients(ctx.choice, grad, x, weight, mask)
        return *(g if needed else None for g, needed in zip(found, mask, strict=True)), None


def _gradients(choice: Choice, grad: Tensor, x: Tensor, weight: Tensor, mask: Mask) -> tuple[Tensor, ...]:
    watched = torch._C._len_torch_dispatch_stack() > 0 or torch._C._are_functorch_transforms_active()
    if torch.is_grad_enabled() or watched or type(grad) is not Tensor:  # the operator has derivatives and a batch rule
        return torch.ops.separable.depthwise_conv_backward(grad, x, weight, *choice.window, *mask)
    of_input, of_weight = choice.backward_ways(grad, x, weight, mask)
    if of_input == of_weight:
        return choice.gradients(of_input, grad, x, weight, mask)
    first = choice.gradients(of_input, grad, x, weight, (True, False, False))
    return first[0], *choice.gradients(of_weight, grad, x, weight, (False, *mask[1:]))[1:]
