"""The network that a command's SOURCE names, the task it was trained for, and how images reach it."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from separable import models, store
from separable.data.images import Preparation
from separable.errors import InputError, first_line
from separable.models import word_folder
from separable.progress import say

TASKS = ("audio", "image", "text", "tokens")


@dataclass
class Network:
    """A network, its name, how its images are prepared (settings, a function, or unknown), and its classes."""

    model: nn.Module
    name: str
    preparation: Any = None
    input_shape: tuple[int, ...] | None = None  # batch first
    classes: list[str] = field(default_factory=list)


def open_network(source: str, weights: Path | None) -> Network:
    """A saved folder, `timm:NAME`, `torchvision:NAME` or `FILE.py:FACTORY`, with weights where given."""
    folder = store.network_folder(Path(source))
    if folder.is_dir():
        if weights is not None:
            raise InputError("--weights", weights, f"{source} is a saved network and brings its own")
        about = store.read_about(folder)
        shape = about.get("input_shape")
        preparation = about.get("preparation")
        return Network(
            store.load(folder),
            folder.resolve().name,
            Preparation.from_json(preparation) if preparation else None,
            tuple(shape) if shape else None,
            about.get("classes", []),
        )
    _check_there(source)
    read = models.read_model(source, weights)
    if weights is None:
        made = "random" if source.startswith(("timm:", "torchvision:")) else "those that FILE.py gives it"
        say(f"No --weights: the weights of {read.name} are {made}")
    shape = None if read.input_shape is None else (1, *read.input_shape)
    return Network(read.model.eval(), read.name, read.preparation, shape)


def _check_there(source: str) -> None:
    if ":" not in source and not Path(source).is_dir():
        rule = "must be a saved folder, and there is none of this name, timm:NAME, torchvision:NAME or FILE.py:FACTORY"
        raise InputError("SOURCE", source, rule)


def task_of(source: str) -> tuple[str, ModuleType]:
    """The network's own place and its task's commands; the folder that a recipe wrote around it serves too.

    A source that says nothing of a task, such as timm:NAME, is for images.
    """
    _check_there(source)
    folder, task = store.network_folder(Path(source)), "image"
    if folder.is_dir():
        source = str(folder)
        task = word_folder.task_of(folder) or store.read_about(folder).get("task", "image")
    if task not in TASKS:
        raise InputError("SOURCE", source, f"was trained for {task!r}, which this version does not know")
    return source, importlib.import_module(f"separable.commands.{task}")


def call(function: Callable[..., Any], source: str, given: Any, options: Mapping[str, Any]) -> Any:
    """`function` with the options that were given (not None); its keywords are the options its task has."""
    known = inspect.signature(function).parameters
    asked = {name: value for name, value in options.items() if value is not None}
    for name, value in asked.items():
        if name not in known:
            task = function.__module__.rpartition(".")[2]
            option = "--" + name.replace("_", "-")
            raise InputError(option, value, f"does not go with a network for {task}, as {source} is")
    return function(source, given, **asked)


def preparation_of(network: Network, size: str | None, mean: str | None, std: str | None) -> Any:
    """How images reach the network: --size, --mean and --std over what its source says."""
    given: dict[str, Any] = {}
    if size is not None:
        given["size"] = sides_of(size)
    for option, text in (("mean", mean), ("std", std)):
        if text is not None:
            given[option] = numbers(f"--{option}", text)
    known = network.preparation.to_json() if isinstance(network.preparation, Preparation) else network.preparation
    if isinstance(known, Mapping):
        return Preparation.from_settings({**known, **given})
    if "mean" in given and "std" in given:
        return Preparation.from_settings(given)
    if known is None:
        rule = f"{network.name} does not say how its images are prepared; give both, or `preprocess` in FILE.py"
        raise InputError("--mean, --std", f"{mean}, {std}", rule)
    if given:
        rule = "cannot change a part of what the function `preprocess` does; give --size, --mean and --std, or none"
        raise InputError(", ".join(f"--{option}" for option in given), "given", rule)
    return known


def sides_of(size: str) -> tuple[int, int]:
    """224 or 240x320 as height and width."""
    sides = numbers("--size", size.replace("x", ","), int)
    if len(sides) > 2 or min(sides) < 1:
        raise InputError("--size", size, "must be one side or height x width, as 224 or 240x320")
    return sides[0], sides[-1]


def numbers(option: str, text: str, kind: type = float) -> list:
    """A comma-separated list, as 0.485,0.456,0.406."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(option, text, "must be numbers with commas between them") from None


def example_of(network: Network, shape: str | None) -> Tensor:
    """A batch of the shape asked for, else of the shape that the source is known to take."""
    if shape is not None:
        dims = numbers("--shape", shape, int)
        if len(dims) < 2 or min(dims) < 1:
            raise InputError("--shape", shape, "must be the whole input, batch first, as 1,3,224,224")
    elif network.input_shape is not None:
        dims = list(network.input_shape)
    else:
        raise InputError("--shape", "not given", f"{network.name} does not say what it takes; give it, as 1,3,224,224")
    dtype = next((p.dtype for p in network.model.parameters() if p.is_floating_point()), torch.float32)
    try:
        return torch.randn(dims, generator=torch.Generator().manual_seed(0)).to(dtype)
    except RuntimeError as error:
        raise InputError("--shape", ",".join(map(str, dims)), f"cannot be made: {first_line(error)}") from error
