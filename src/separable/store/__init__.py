"""Save a network as safetensors plus one JSON that holds its graph, and load it without its code and without pickle.

    folder/model.safetensors   the weights, under the names they have in the state dict
    folder/model.json          the graph, the modules' constructor arguments, and what is known about the network

What may stand in the JSON is listed in `allowed.py`. A folder is written whole or not at all, and is loaded again and
compared before it appears.
"""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from separable import __version__
from separable.atomic import check_folder, folder_beside
from separable.errors import InputError, first_line
from separable.store.capture import capture
from separable.store.rebuild import rebuild
from separable.store.tensors import write as write_tensors
from separable.store.verify import check_network, check_same_outputs, example_inputs

FORMAT, FORMAT_VERSION = "separable network", 1
GRAPH, WEIGHTS = "model.json", "model.safetensors"


def network_folder(folder: Path) -> Path:
    """The folder of a network itself: this one, or `network/` in it, as a recipe leaves it."""
    inner = folder / "network"
    return inner if inner.is_dir() and not (folder / GRAPH).is_file() else folder


_LARGEST_JSON_BYTES = 256 << 20

__all__ = ["load", "read_about", "save"]


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    example: Tensor | tuple[Tensor, ...] | None = None,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a network so that `load` gives it back anywhere, trainable, without its code.

    Args:
        model: any network whose forward torch.fx can follow: no branching on values, no hooks.
        folder: must not exist or be empty.
        example: a batch the network takes. The network loaded again is compared with this one at batch 1 and 3 before
            the folder appears; without an example, `about["input_shape"]` (batch first) serves.
        about: anything JSON holds: "preparation", "classes", "input_shape", measured numbers. A Preparation may stand
            as it is. Versions are added.
        overwrite: replace an earlier saved network.

    Raises:
        InputError: the model is no module, or cannot be written down (with the line of its code that prevents it), the
            folder is taken, or what was loaded again computes something else.

    >>> import tempfile, torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(net, folder + "/net", example=torch.zeros(1, 3, 8, 8))
    ...     load(folder + "/net")(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 8, 6, 6])
    """
    model = check_network(model)
    check_folder(_path(folder), overwrite=overwrite, argument="folder")
    known = _plain(about or {})
    inputs = example_inputs(example, known)
    if inputs is not None:
        known.setdefault("input_shape", list(inputs[0].shape))
        known.setdefault("input_dtype", str(inputs[0].dtype).removeprefix("torch."))
    known["versions"] = {"separable": __version__, "torch": torch.__version__, "python": platform.python_version()}
    graph, tensors = capture(model)
    document = {"format": FORMAT, "version": FORMAT_VERSION, "about": known, **graph}
    with folder_beside(folder, overwrite=overwrite, argument="folder") as beside:
        (beside / GRAPH).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
        write_tensors(beside / WEIGHTS, tensors)
        try:
            loaded = load(beside)
        except InputError as error:
            raise InputError("model", type(model).__name__, f"cannot be saved: {error.rule}") from error
        _check_same_state(model, loaded)
        if inputs is not None:
            check_same_outputs(model, loaded, inputs)


def load(folder: str | Path) -> nn.Module:
    """The network that `save` wrote: torch's and our layers under their old names, in evaluation mode.

    Nothing but the operations of `allowed.py` can be in it, whoever wrote the folder. `.train()` makes it trainable.

    Raises:
        InputError: a file is missing, damaged, of another version, names something that is not allowed, or the weights
            do not fit the graph.
    """
    folder = _path(folder)
    document = _read(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError("folder", folder, f"has no {WEIGHTS}")
    try:
        # copies: aligned as torch aligns, and no longer tied to the file
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError("folder", folder, f"{WEIGHTS} is damaged: {error}") from error
    try:
        return rebuild(document, tensors)
    except InputError as error:  # of a layer's constructor
        raise InputError("folder", folder, f"{GRAPH} describes no network: {error}") from error
    except Exception as error:  # a hostile description may break the building in any way; it must not pass
        reason = first_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"
        raise InputError("folder", folder, f"{GRAPH} describes no network: {reason}") from error


def read_about(folder: str | Path) -> dict[str, Any]:
    """What was saved about a network: preparation, classes, input_shape, measured numbers, versions.

    Raises:
        InputError: there is no saved network.
    """
    return _read(_path(folder))["about"]


def _path(folder: Any) -> Path:
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError("folder", folder, "must be a path")
    return Path(folder)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / GRAPH
    if not path.is_file():
        raise InputError("folder", folder, f"holds no saved network (no {GRAPH})")
    if path.stat().st_size > _LARGEST_JSON_BYTES:
        raise InputError("folder", folder, f"{GRAPH} is larger than any network's description")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError("folder", folder, f"{GRAPH} is damaged: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError("folder", folder, f"{GRAPH} is no description of a network")
    if document.get("version") != FORMAT_VERSION:
        rule = f"{GRAPH} is of format {document.get('version')}, and this version reads {FORMAT_VERSION}"
        raise InputError("folder", folder, f"{rule}; a newer separable may read it")
    for part in ("about", "modules", "tensors"):
        if not isinstance(document.get(part), dict):
            raise InputError("folder", folder, f"{GRAPH} is damaged: it has no '{part}'")
    return document


def _plain(about: Mapping[str, Any]) -> dict[str, Any]:
    """`about` as JSON gives it back: a copy, and the proof that it can be written."""
    written = {key: value.to_json() if hasattr(value, "to_json") else value for key, value in about.items()}
    try:
        return json.loads(json.dumps(written, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError("about", type(about).__name__, f"must hold plain JSON: {error}") from None


def _check_same_state(model: nn.Module, loaded: nn.Module) -> None:
    before, after = model.state_dict(), loaded.state_dict()
    wrong = list(before.keys() ^ after.keys())
    wrong += [name for name in before.keys() & after.keys() if not _equal(before[name], after[name])]
    if wrong:
        rule = f"cannot be saved: {', '.join(sorted(wrong)[:5])} would not come back as it is"
        raise InputError("model", type(model).__name__, rule)


def _equal(value: Any, other: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    value = value.detach().cpu()
    if value.dtype != other.dtype or value.shape != other.shape:
        return False
    return bool(((value == other) | (value != value)).all())
