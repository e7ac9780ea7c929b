"""Compare a network with what it became on disk, on random input, at batch 1 and at batch 3.

Two batch sizes show a graph that has one of them written into it; the tolerance is that of the dtype's rounding.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from separable.errors import InputError, first_line
from separable.inputs import own_copy

BATCHES = (1, 3)


def check_network(model: Any) -> nn.Module:
    """The module itself, out of torch.compile's wrapper; anything else is refused."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        raise InputError("model", model, "must be a torch.nn.Module")
    return model


def example_inputs(example: Any, about: Mapping[str, Any]) -> tuple[Tensor, ...] | None:
    """The example as a tuple of batches, else one made of `about["input_shape"]`, else None."""
    if example is not None:
        inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
        if not inputs or any(not isinstance(x, Tensor) or x.dim() < 1 or x.shape[0] < 1 for x in inputs):
            raise InputError("example", type(example).__name__, "must be a tensor with a batch dimension, or several")
        return inputs
    shape = about.get("input_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise InputError("input_shape", shape, "must be the whole input's, batch first, as [1, 3, 224, 224]")
    dtype = getattr(torch, str(about.get("input_dtype", "float32")), None)
    if not isinstance(dtype, torch.dtype):
        raise InputError("input_dtype", about["input_dtype"], "must name a torch dtype, as float32")
    return (torch.zeros(shape, dtype=dtype),)


def at_batch(inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    """Random tensors like the inputs, with `batch` in the first dimension; whole numbers are the example's own."""
    generator = torch.Generator().manual_seed(batch)
    made = []
    for x in inputs:
        shape = (batch, *x.shape[1:])
        if x.is_floating_point():
            made.append(torch.randn(shape, generator=generator).to(x.dtype))
        else:
            made.append(x.detach().cpu()[torch.arange(batch) % x.shape[0]])
    return tuple(made)


def check_same_outputs(model: nn.Module, loaded: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Refuse a loaded network that computes anything else than the model, which stays as it is."""
    original = copy.deepcopy(model).cpu().eval()
    for batch in BATCHES:
        given = at_batch(inputs, batch)
        with torch.no_grad():
            expected = _run(original, own_copy(given))
        with torch.no_grad():
            actual = loaded(*given)
        problem = first_difference(expected, actual)
        if problem:
            raise InputError(
                "model", type(model).__name__, f"cannot be saved: loaded again, at batch {batch}, {problem}"
            )


def _run(model: Callable, given: Sequence[Tensor]) -> Any:
    try:
        return model(*given)
    except Exception as error:  # the user's network may fail in any way on a wrong example
        shapes = ", ".join(str(list(x.shape)) for x in given)
        raise InputError("example", shapes, f"the network fails on it: {first_line(error)}") from error


def first_difference(expected: Any, actual: Any, scale: float = 1.0) -> str | None:
    """What differs first between two outputs (tensors, or tuples, lists and dicts of them); None where nothing does.

    `scale` multiplies the tolerance, for a runtime that orders its sums differently.
    """
    if isinstance(expected, Mapping):
        expected, actual = list(expected.values()), list(actual.values()) if isinstance(actual, Mapping) else [actual]
    if isinstance(expected, (tuple, list)):
        if not isinstance(actual, (tuple, list)) or len(expected) != len(actual):
            return "the outputs have another structure"
        differences = (first_difference(e, a, scale) for e, a in zip(expected, actual, strict=True))
        return next((d for d in differences if d), None)
    if not isinstance(expected, Tensor):
        return None if expected == actual else f"it gives {actual} for {expected}"
    if not isinstance(actual, Tensor) or expected.shape != actual.shape:
        return f"the output has shape {list(getattr(actual, 'shape', []))}, not {list(expected.shape)}"
    if expected.dtype != actual.dtype:
        return f"the output is {actual.dtype}, not {expected.dtype}"
    if not expected.is_floating_point():
        return None if torch.equal(expected, actual) else "the outputs differ"
    tolerance = scale * relative_tolerance(expected.dtype)
    wide, other = expected.double(), actual.double()
    size = max(float(wide.nan_to_num(0, 0, 0).abs().max()) if wide.numel() else 0.0, 1e-30)
    if torch.allclose(wide, other, rtol=tolerance, atol=tolerance * size, equal_nan=True):
        return None
    return f"the outputs differ by {float((wide - other).abs().max()):.3g} where they reach {size:.3g}"


def relative_tolerance(dtype: torch.dtype) -> float:
    """A hundred roundings of the dtype, of the largest output."""
    return 100 * torch.finfo(dtype).eps
