"""Arguments of calls and constructors as JSON, and back: numbers, words, slices, dtypes, references to nodes.

What JSON cannot say itself is an object of one key that says what it is: {"tuple": [...]}, {"node": "relu_1"}.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

_DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("float32", "float64", "float16", "bfloat16", "complex64", "complex128"),
        *("uint8", "int8", "int16", "int32", "int64", "bool"),
    )
}
_FORMATS = {
    str(f).removeprefix("torch."): f for f in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
}
_FORMATS["preserve_format"] = torch.preserve_format
_MOST_NESTED = 32
_LARGEST = 2**40  # an int in a call; sizes of real networks stay far below


def encode(value: Any) -> Any:
    """The value as JSON.

    Raises:
        TypeError: it is of a kind that a saved network cannot hold.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):  # torch.Size too
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {"dict": {k: encode(v) for k, v in value.items()}}
    if isinstance(value, slice):
        return {"slice": [encode(v) for v in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    for kind, known in (("dtype", _DTYPES), ("memory_format", _FORMATS)):
        for name, entry in known.items():
            if entry is value:
                return {kind: name}
    raise TypeError(f"a value of type {type(value).__name__}")


def decode(value: Any, nodes: Mapping[str, fx.Node], depth: int = 0) -> Any:
    """The value that `encode` wrote.

    Raises:
        ValueError: it is not one.
    """
    if depth > _MOST_NESTED:
        raise ValueError("arguments are nested too deeply")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        raise ValueError(f"the number {value} is too large")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [decode(v, nodes, depth + 1) for v in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"{str(value)[:80]} is no argument")
    ((kind, inner),) = value.items()
    if kind == "node" and isinstance(inner, str) and inner in nodes:
        return nodes[inner]
    if kind == "tuple" and isinstance(inner, list):
        return tuple(decode(v, nodes, depth + 1) for v in inner)
    if kind == "dict" and isinstance(inner, dict):
        return {k: decode(v, nodes, depth + 1) for k, v in inner.items()}
    if kind == "slice" and isinstance(inner, list) and len(inner) == 3:
        return slice(*(decode(v, nodes, depth + 1) for v in inner))
    if kind == "ellipsis":
        return ...
    if kind == "float" and inner in ("inf", "-inf", "nan"):
        return float(inner)
    if kind == "dtype" and inner in _DTYPES:
        return _DTYPES[inner]
    if kind == "memory_format" and inner in _FORMATS:
        return _FORMATS[inner]
    raise ValueError(f"{str(value)[:80]} is no argument")
