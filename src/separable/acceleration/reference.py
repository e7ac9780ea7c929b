"""Compute steps with torch, on the same runs of memory: the judge of native programs, and what runs without them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.acceleration.graph import ACTIVATIONS
from separable.acceleration.steps import Memory, Step

Runs = dict[Memory, Tensor]  # flat float32 tensors


def run(steps: list[Step], runs: Runs) -> None:
    """Compute every step in order; what they make is added to `runs`."""
    for step in steps:
        for part in step.parts or [step]:
            _run_one(part, runs)
        if step.sums is not None:
            runs[step.sums] = runs[step.y].view(step.batch, -1, step.c_out).sum(1).reshape(-1)


def _run_one(step: Step, runs: Runs) -> None:
    if step.kind == "relayout":
        made = runs.setdefault(step.y, torch.empty(step.y.floats, dtype=torch.float32))
        x = runs[step.x].as_strided(step.sizes, step.x_strides, step.x_offset)
        made.as_strided(step.sizes, step.y_strides, step.y_offset).copy_(x)
        return
    result = _COMPUTED[step.kind](step, runs)
    if step.activation is not None and not (step.other is not None and step.activation_last):
        result = ACTIVATIONS[step.activation](result)
    if step.other is not None:
        result = result.reshape(-1) + runs[step.other]
        if step.activation is not None and step.activation_last:
            result = ACTIVATIONS[step.activation](result)
    runs[step.y] = result.reshape(-1)


def _rows(step: Step, runs: Runs) -> Tensor:
    stride = step.x_stride or step.c_in
    return runs[step.x].as_strided((step.rows, step.c_in), (stride, 1), step.x_offset)


def _gated(step: Step, runs: Runs, x: Tensor) -> Tensor:
    if step.gate is None:
        return x
    images = step.rows // max(step.image_rows, 1)
    return (x.view(images, -1, step.c_in) * runs[step.gate].view(images, 1, step.c_in)).view(step.rows, step.c_in)


def _images(step: Step, runs: Runs) -> Tensor:
    """[N, C, H, W], with the border that the step's window needs."""
    shape = (step.batch, step.c_in, *step.size)
    height, width = step.size
    strides = step.x_strides or (height * width * step.c_in, 1, width * step.c_in, step.c_in)
    return runs[step.x].as_strided(shape, strides, step.x_offset)


def _padded(step: Step, x: Tensor, value: float) -> Tensor:
    border = []
    for i in (1, 0):
        reach = (step.out[i] - 1) * step.stride[i] + step.dilation[i] * (step.kernel[i] - 1) + 1
        border += [step.padding[i], reach - step.size[i] - step.padding[i]]
    return F.pad(x, border, value=value)


def _conv(step: Step, runs: Runs) -> Tensor:
    assert step.weight is not None
    groups = min(step.c_in, step.c_out) if step.kind == "depthwise" else 1
    x = _padded(step, _images(step, runs), 0.0)
    return F.conv2d(x, step.weight, step.bias, step.stride, 0, step.dilation, groups).permute(0, 2, 3, 1)


def _pointwise(step: Step, runs: Runs) -> Tensor:
    assert step.weight is not None
    x = _rows(step, runs)
    if step.normalize:
        x = F.layer_norm(x, (step.c_in,), eps=step.eps)
    return F.linear(_gated(step, runs, x), step.weight.reshape(step.c_out, step.c_in), step.bias)


def _affine(step: Step, runs: Runs) -> Tensor:
    x = _rows(step, runs)
    x = x if step.weight is None else x * step.weight
    return x if step.bias is None else x + step.bias


def _norm(step: Step, runs: Runs) -> Tensor:
    return F.layer_norm(_rows(step, runs), (step.c_in,), step.weight, step.bias, step.eps)


def _scale(step: Step, runs: Runs) -> Tensor:
    return _gated(step, runs, _rows(step, runs))


def _pool(step: Step, runs: Runs) -> Tensor:
    x = _padded(step, _images(step, runs), 0.0 if step.average else float("-inf"))
    if not step.average:
        return F.max_pool2d(x, step.kernel, step.stride).permute(0, 2, 3, 1)
    sums = F.avg_pool2d(x, step.kernel, step.stride, divisor_override=1)
    if step.factor:
        return (sums * step.factor).permute(0, 2, 3, 1)
    ones = _padded(step, torch.ones(1, 1, *step.size, dtype=torch.float32), 0.0)
    return (sums / F.avg_pool2d(ones, step.kernel, step.stride, divisor_override=1)).permute(0, 2, 3, 1)


_COMPUTED = {
    "depthwise": _conv,
    "dense": _conv,
    "pointwise": _pointwise,
    "affine": _affine,
    "add": _affine,  # what is added is added to every kind
    "scale": _scale,
    "norm": _norm,
    "pool": _pool,
}
