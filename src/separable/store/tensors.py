"""The tensors of a network by name: which are parameters, shared, or not in its state dict; and their file.

Source of the file's format: https://github.com/huggingface/safetensors#format. It is written here because safetensors'
own writer for torch needs numpy, which the core does without; its reader needs torch alone.
"""

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from separable.errors import InputError

_DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.uint16: "U16",
    torch.int32: "I32", torch.uint32: "U32", torch.int64: "I64", torch.uint64: "U64", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_ALIGNMENT_BYTES = 8


def describe(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What each tensor is, in the model's order, and the values to write; one that stands in several places, once."""
    described: dict[str, Any] = {}
    written: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=True):
        for kind, place in (("parameter", module._parameters), ("buffer", module._buffers)):
            for last, tensor in place.items():
                if tensor is None:
                    continue
                name = f"{path}.{last}" if path else last
                described[name] = {"kind": kind}
                if kind == "parameter" and not tensor.requires_grad:
                    described[name]["requires_grad"] = False
                if kind == "buffer" and last in module._non_persistent_buffers_set:
                    described[name]["persistent"] = False
                if id(tensor) in first:
                    described[name]["same_as"] = first[id(tensor)]
                    continue
                first[id(tensor)] = name
                written[name] = tensor.detach().cpu().contiguous().clone()
    return described, written


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors in main memory as safetensors: the header's length, the header as JSON, the values.

    Raises:
        InputError: a tensor's dtype has no name in the format.
        OSError: as writing raises it.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # each begins at its own alignment
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise InputError("model", name, f"cannot be saved: safetensors holds no {tensor.dtype}")
        begin, end = end, end + tensor.nbytes
        shape, dtype = list(tensor.shape), _DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    with open(file, "wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for tensor in map(tensors.__getitem__, order):
            if tensor.nbytes:
                opened.write((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
