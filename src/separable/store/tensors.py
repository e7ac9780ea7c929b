"""The tensors of a network by name: which are parameters, which are shared, which are not in its state dict."""

from typing import Any

from torch import Tensor, nn


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
