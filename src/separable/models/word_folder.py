"""A network that reads words, as a folder: its weights, its word vectors and one JSON; no pickle is ever read.

folder/network.json          the task it was trained for ("text", "tokens"), its shape, and what it knows of words
folder/weights.safetensors   tensors under their names
folder/vectors.safetensors   the words and their vectors, in half precision
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from separable import atomic
from separable.data import vectors
from separable.data.vectors import Vectors
from separable.errors import InputError, first_line

ABOUT = "network.json"


@dataclass
class Contents:
    """What a folder holds: plain data, tensors, and words with their vectors."""

    about: dict[str, Any]
    state: dict[str, Tensor]
    words: Vectors


def write(
    folder: Path | str, task: str, about: Mapping[str, Any], state: dict[str, Tensor], words: Vectors, overwrite: bool
) -> None:
    """Write the folder, whole or not at all."""
    with atomic.folder_beside(folder, overwrite=overwrite, mark=ABOUT) as beside:
        save_file(state, beside / "weights.safetensors")
        vectors.save(Vectors(words.places, words.table.half()), beside / "vectors.safetensors")
        (beside / ABOUT).write_text(json.dumps({"task": task, **about}, ensure_ascii=False), encoding="utf-8")


@contextmanager
def reading(folder: Path | str, task: str) -> Iterator[Contents]:
    """What `write` wrote, to build the network of inside the block.

    Raises:
        InputError: the folder is of another task, is damaged, or what is built in the block does not fit.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["task"] != task:
            raise InputError(
                "folder", str(folder), f"holds a network for {about['task']}, where one for {task} is needed"
            )
        state = load_file(folder / "weights.safetensors")
        yield Contents(about, state, vectors.read(folder / "vectors.safetensors"))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError("folder", str(folder), f"is no saved network for {task}: {first_line(error)}") from None


def task_of(folder: Path | str) -> str | None:
    """The task of such a folder; None where the folder is none."""
    file = Path(folder) / ABOUT
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["task"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("folder", str(folder), f"{ABOUT} is damaged: {first_line(error)}") from None
