"""A module as its class and the arguments its constructor needs to make one like it, and back.

Arguments come from the constructor's signature; each is an attribute of the same name, apart from those spelled out.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from separable.store import values
from separable.store.allowed import MODULE_NAMES, MODULES

_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
_SKIPPED = {"device", "dtype", "init", "min_value", "max_value"}  # first values, and deprecated second names
_MOST_LAYERS = 1000  # of a recurrent module, whose constructor works through them
# Overridden without changing what a module computes.
_HARMLESS = {"__init__", "__doc__", "__module__", "__annotations__", "__constants__", "__qualname__"}
_HARMLESS |= {"extra_repr", "__repr__", "reset_parameters", "__setstate__", "__static_attributes__", "__firstlineno__"}


def known_class(module: nn.Module) -> type[nn.Module] | None:
    """The class on the list that this module computes as: its own, or one it inherits from and does not change."""
    classes = type(module).__mro__
    base = next((kind for kind in classes if kind in MODULE_NAMES), None)
    if base is None:
        return None
    for kind in classes[: classes.index(base)]:
        if any(name not in _HARMLESS and hasattr(base, name) for name in vars(kind)):
            return None
    return base


def describe(module: nn.Module) -> dict[str, Any]:
    """{"class", "arguments"} of a module whose class is on the list.

    Raises:
        TypeError: an argument cannot be found or be said in JSON.
    """
    kind = known_class(module)
    if kind is None:
        raise TypeError(f"a {type(module).__name__}")
    name = MODULE_NAMES[kind]
    if name.startswith("separable.layers.Separable"):
        arguments = _separable_arguments(module, _argument_names(kind))
    else:
        arguments = {argument: _find(module, kind, argument) for argument in _argument_names(kind)}
    encoded = {key: value if isinstance(value, _Nested) else values.encode(value) for key, value in arguments.items()}
    return {"class": name, "arguments": encoded}


def build(description: Any) -> nn.Module:
    """The module on the meta device, so that sizes cost nothing before weights are known to fit them.

    Raises:
        ValueError: it is no description of a module on the list.
    """
    if not isinstance(description, dict) or not isinstance(description.get("arguments"), dict):
        raise ValueError("it has no class and arguments")
    kind = MODULES.get(str(description.get("class")))
    if kind is None:
        raise ValueError(f"class {description.get('class')} is not among those a saved network may hold")
    arguments: dict[str, Any] = {}
    separable = description["class"].startswith("separable.layers.Separable")
    known = set(_argument_names(kind))
    for name, value in description["arguments"].items():
        if name not in known:
            raise ValueError(f"{description['class']} takes no argument {name}")
        nested = separable and name in ("norm", "inner_norm") and value is not None
        arguments[name] = _maker(value) if nested else values.decode(value, {})
    if arguments.get("num_layers", 0) and not 0 < arguments["num_layers"] <= _MOST_LAYERS:
        raise ValueError(f"num_layers is {arguments['num_layers']}")
    for name in ("device", "dtype"):
        parameter = inspect.signature(kind).parameters.get(name)
        if parameter is not None and parameter.default is parameter.empty:
            arguments[name] = None
    with torch.device("meta"):
        return kind(**arguments)


class _Nested(dict):
    """The description of a module that is an argument of another."""


def _maker(description: Mapping[str, Any]) -> Callable[[int], nn.Module]:
    return lambda channels: build(description)


def _argument_names(kind: type[nn.Module]) -> tuple[str, ...]:
    if issubclass(kind, nn.RNNBase):  # these take *args and **kwargs
        return _RECURRENT + {nn.LSTM: ("proj_size",), nn.RNN: ("nonlinearity",)}.get(kind, ())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(kind).parameters.values()
    return tuple(p.name for p in parameters if p.kind in named and p.name not in _SKIPPED and p.name[0] != "_")


def _find(module: nn.Module, kind: type[nn.Module], argument: str) -> Any:
    if kind is nn.MultiheadAttention:
        if argument == "bias":
            return module.in_proj_bias is not None
        if argument == "add_bias_kv":
            return module.bias_k is not None
    if not hasattr(module, argument):
        raise TypeError(f"a {type(module).__name__} without the attribute {argument}")
    value = getattr(module, argument)
    if argument == "bias" and not isinstance(value, bool):
        return value is not None
    return value


def _separable_arguments(layer: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The halves know the geometry; the layer knows how they are put together."""
    last = layer.conv_pw if layer.order == "depthwise_first" else layer.conv_dw
    norms = {name: getattr(layer, name) for name in ("inner_norm", "norm")}
    arguments: dict[str, Any] = {
        name: None if norm is None else _Nested(describe(norm)) for name, norm in norms.items()
    }
    arguments["bias"] = last.bias is not None
    for name in names:
        if name not in arguments:
            arguments[name] = getattr(layer if hasattr(layer, name) else layer.conv_dw, name)
    return arguments
