"""Files in which a conversion keeps what took long to find out, each as soon as it is known, whole or not at all.

A file that is damaged counts as not there: what it held is found again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from separable import atomic, runtimes
from separable.store.tensors import write as write_tensors

Found = TypeVar("Found")


class Kept:
    """Files of one folder; where there is none nothing is kept and nothing found."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def data(
        self, name: str, find: Callable[[], Found], read: Callable[[Any], Found],
        write: Callable[[Found], Any] = lambda found: found,
    ) -> Found:  # fmt: skip
        """The value stored under `name`; else the result of `find()`, which is then stored.

        write: makes plain data of it; read: makes it of plain data.
        """
        found = self._read(name, read)
        if found is None:
            found = find()
            self.keep(name, write(found))
        return found

    def comparison(self, name: str, find: Callable[[], runtimes.Comparison]) -> runtimes.Comparison:
        def read(data: Any) -> runtimes.Comparison:
            return runtimes.Comparison(**{**data, "rows": [runtimes.Timed(**row) for row in data["rows"]]})

        return self.data(name, find, read, asdict)

    def layer(self, name: str, parts: Mapping[str, nn.Module]) -> float | None:
        """Give the modules the states that were kept of a layer. Its error; None where none were kept."""
        if self.folder is None:
            return None
        try:
            found = load_file(self.folder / f"{digest(name)}.safetensors")
            error = float(found.pop("error"))
        except Exception:  # not there, or damaged in whatever way
            return None
        if _kinds(found) != _kinds(_states(parts)):
            return None
        for part, module in parts.items():
            module.load_state_dict({name: found[f"{part}.{name}"] for name in module.state_dict()})
        return error

    def keep_layer(self, name: str, parts: Mapping[str, nn.Module], error: float) -> None:
        if self.folder is None:
            return
        tensors = {n: t.detach().cpu().contiguous() for n, t in _states(parts).items()}
        tensors["error"] = torch.tensor(error, dtype=torch.float64)
        with atomic.write_beside(self.folder / f"{digest(name)}.safetensors", argument="checkpoint") as beside:
            write_tensors(beside, tensors)

    def keep(self, name: str, data: Any) -> None:
        if self.folder is not None:
            with atomic.write_beside(self.folder / f"{name}.json", argument="checkpoint") as beside:
                beside.write_text(json.dumps(data), encoding="utf-8")

    def _read(self, name: str, read: Callable[[Any], Found]) -> Found | None:
        if self.folder is None:
            return None
        try:
            return read(json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))
        except Exception:  # not there, or damaged in whatever way
            return None


def _states(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def digest(*parts: Any) -> str:
    """Of tensors their values, of all else what `repr` says."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype} {list(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            found.update(repr(part).encode())
    return found.hexdigest()[:32]
