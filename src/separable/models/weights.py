"""Read weights from a file as data: tensors are taken, code is never run, and all of it fits or nothing is loaded."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from separable.errors import InputError

_NESTS = ("state_dict", "model_state_dict", "model", "net")  # where training scripts put the weights of a checkpoint
_WRAPPERS = ("module.", "model.", "net.")  # DataParallel's prefix, and that of a network held by a Lightning module
_DEEPEST = 8  # checkpoints nest once or twice
_SHOWN = 4


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Load a .safetensors or torch file into `model`: all of it, or nothing.

    A checkpoint's nested state_dict and the prefixes that DataParallel and torch.compile add are understood, batch
    norm's num_batches_tracked may be absent, and values take the dtype and device of the model's own.

    Raises:
        InputError: the file is missing or damaged; it holds Python objects, which are refused and never executed; or it
            does not fit, with the keys that are missing, unexpected or of another shape.

    >>> load_weights(nn.Linear(2, 3), "nowhere.safetensors")
    Traceback (most recent call last):
        ...
    separable.errors.InputError: weights = nowhere.safetensors: there is no such file
    """
    state = read_state(file)
    own = model.state_dict()
    state = _without_wrappers(state, own)
    check_fit("weights", str(file), state, own)
    # Converted first, so that a tensor which cannot be is found before the first one is loaded.
    state = {key: value.to(own[key].dtype) for key, value in state.items()}
    model.load_state_dict(state, strict=False)  # what may be absent was checked


def read_state(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file by name, on the CPU; a checkpoint's nesting is undone."""
    path = Path(file)
    if not path.is_file():
        raise InputError("weights", file, "is a folder" if path.is_dir() else "there is no such file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    content = _unnested(content, file)
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError("weights", file, "holds no state_dict, neither at its top nor under " + ", ".join(_NESTS))
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _unnested(content: Any, file: str | Path) -> Any:
    """What lies innermost, which may be no state dict; a mapping can hold itself, so the depth has a bound."""
    for _ in range(_DEEPEST):
        held = content if isinstance(content, Mapping) else {}
        nest = next((held[key] for key in _NESTS if isinstance(held.get(key), Mapping)), None)
        if nest is None:
            return content
        content = nest
    raise InputError("weights", file, f"nests its weights more than {_DEEPEST} deep, or in themselves")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError("weights", path, f"is not a readable safetensors file ({error})") from None


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # the refusal says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any part of the reader
        raise InputError("weights", path, _why_unreadable(error)) from None


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and ("GLOBAL" in text or "Unsupported" in text):
        named = re.search(r"GLOBAL ([\w.]+)", text)
        objects = f"Python objects ({named[1]})" if named else "Python objects"
        rule = f"was refused: it holds {objects}, and reading those would run code"
    elif "TorchScript" in text:
        rule = "was refused: it is a TorchScript program"
    else:
        return "is damaged or not a torch file"
    return f"{rule}; save weights alone, with torch.save(model.state_dict(), file)"


def _without_wrappers(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers: those that every key has in the file, and not every key in the model."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}  # torch.compile's, at any depth
    for _ in range(len(_WRAPPERS)):
        for prefix in _WRAPPERS:
            wrapped = all(key.startswith(prefix) for key in state)
            if wrapped and not all(key.startswith(prefix) for key in own):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def check_fit(argument: str, value: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse a state dict with keys that are missing, unexpected or of another shape than the network's own."""
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    told = [f"{len(keys)} {fault} ({_some(keys)})" for fault, keys in faults.items() if keys]
    if told:
        raise InputError(argument, value, f"does not fit the network's {len(own)} keys: {'; '.join(told)}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
