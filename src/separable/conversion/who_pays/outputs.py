"""What networks give, in whatever structure: class logits where there are any, and tensors to measure distances of."""

from typing import Any

import torch
from torch import Tensor

from separable.conversion.batches import describe
from separable.errors import InputError
from separable.inputs import tensors


def logits_of(outputs: Any, examples: int) -> Tensor | None:
    """Class logits [N, classes]: the only output, or the one that a dict calls "logits"; None where there are none."""
    if isinstance(outputs, dict) and isinstance(outputs.get("logits"), Tensor):
        outputs = outputs["logits"]
    found = [tensor.detach() for tensor in tensors(outputs)]
    if len(found) != 1 or found[0].dim() != 2 or found[0].shape[1] < 2 or len(found[0]) != examples:
        return None
    return found[0].double() if found[0].is_floating_point() else None


def tensors_of(outputs: Any, examples: int, argument: str) -> list[Tensor]:
    """Every tensor that the network `argument` gives, the examples in its first dimension.

    Raises:
        InputError: there is none, one has another first dimension, or one holds NaN or infinity.
    """
    found = [tensor.detach() for tensor in tensors(outputs)]
    if not found:
        raise InputError(argument, f"output of type {type(outputs).__name__}", "must hold a tensor to compare")
    for tensor in found:
        if tensor.dim() == 0 or len(tensor) != examples:
            rule = f"must have the {examples} examples of the batch in its first dimension"
            raise InputError(argument, f"output, a {describe(tensor)}", rule)
        if not tensor.isfinite().all():
            raise InputError(argument, f"output, a {describe(tensor)}", "holds NaN or infinite values")
    return found


def check_same(dense: list[Tensor], converted: list[Tensor]) -> None:
    """Outputs can be compared one by one."""
    shapes = [[list(tensor.shape) for tensor in some] for some in (dense, converted)]
    if shapes[0] != shapes[1]:
        raise InputError("converted", f"outputs of shapes {shapes[1]}", f"must be as the dense network's, {shapes[0]}")


def distances(first: list[Tensor], second: list[Tensor] | None = None) -> Tensor:
    """Mean squares [N, outputs] of each example's outputs, or of their differences, summed in float64."""
    columns = []
    for i, tensor in enumerate(first):
        values = _real(tensor) if second is None else _real(second[i]) - _real(tensor)
        columns.append(values.reshape(len(values), -1).square().mean(1, dtype=torch.float64))
    return torch.stack(columns, 1).cpu()


def relative(distance: Tensor, scale: Tensor) -> Tensor:
    """Root mean squares [N] of distances [N, outputs] in the scale [outputs] of each output."""
    return (distance / scale.clamp_min(1e-30)).mean(1).sqrt()


def best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Answers [N] and, of each, (softmax probability, value as given) [N, 2]: outputs may be probabilities already."""
    value, answer = logits.max(1)
    return answer.cpu(), torch.stack([logits.softmax(1).amax(1), value], 1).cpu()


def _real(tensor: Tensor) -> Tensor:
    """Numbers that can be subtracted: large maps stay in float32, which is as exact as they are."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)
