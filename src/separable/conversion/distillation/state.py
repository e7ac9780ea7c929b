"""What a run keeps in its folder: everything that continues it to the same numbers, and curves for TensorBoard.

    FOLDER/distillation.pt    the last checkpoint, whole or not there; read with weights_only
    FOLDER/events.out...      TensorBoard's, where the package is installed

A checkpoint belongs to one run: settings, names and shapes of the student's tensors, and a hash of the teacher's
tensors are kept in it and compared.
"""

import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from separable import atomic
from separable.errors import InputError, first_line
from separable.progress import say

NAME = "distillation.pt"
_FORMAT = 1  # of that file


def identity(student: nn.Module, teacher: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for a checkpoint to be of this run."""
    sums = [
        int(torch.hash_tensor(tensor).view(torch.int64)) for tensor in teacher.state_dict().values() if tensor.numel()
    ]
    shapes = {name: list(tensor.shape) for name, tensor in student.state_dict().items()}
    return {"format": _FORMAT, **settings, "student": shapes, "teacher": sums}


class Checkpoints:
    """The folder of a run; does nothing where there is none, or where another process writes."""

    def __init__(self, folder: Path | None, resume: bool, writes: bool):
        self.folder, self.writes = folder, writes
        self.about: dict[str, Any] = {}
        self.written = time.monotonic()  # or begun
        if folder is None:
            if resume:
                raise InputError("resume", resume, "needs checkpoint=FOLDER, the folder of the run to continue")
            return
        self.file = folder / NAME
        if folder.exists() and not folder.is_dir():
            raise InputError("checkpoint", folder, "must be a folder, or a name that is free")
        if resume and folder.exists() and any(folder.iterdir()) and not self.file.exists() and not _only_parts(folder):
            raise InputError("checkpoint", folder, f"holds other files and no {NAME}, so there is no run to resume")
        if not resume and self.file.exists():
            rule = "holds a checkpoint of an earlier run; continue it with resume=True, or choose another folder"
            raise InputError("checkpoint", folder, rule)

    def load(self, about: dict[str, Any]) -> dict[str, Any] | None:
        """The state that was kept last; None where the run begins.

        about: the `identity` of this run.

        Raises:
            InputError: the file is of another run, or cannot be read.
        """
        self.about = about
        if self.folder is None or not self.file.exists():
            return None
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            kept = state["about"]
        except Exception as error:
            raise InputError("checkpoint", self.file, f"cannot be read: {first_line(error)}") from error
        for name, wanted in about.items():
            if kept.get(name) != wanted:
                raise InputError("checkpoint", self.file, _difference(name, kept.get(name), wanted))
        return state

    def save(self, state: dict[str, Any]) -> None:
        if self.folder is not None and self.writes:
            with atomic.write_beside(self.file, argument="checkpoint") as beside:
                torch.save({**state, "about": self.about}, beside)
        self.written = time.monotonic()

    def curves(self, step: int) -> "Curves":
        return Curves(self.folder if self.writes else None, step)


class Curves:
    """TensorBoard's events of a run."""

    def __init__(self, folder: Path | None, step: int):
        self.writer: Any = None
        if folder is None:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what TensorBoard's own imports say of each other
                from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            say("no curves are written: tensorboard is not installed")
            return
        self.writer = SummaryWriter(str(folder), purge_step=step)

    def add(self, step: int, values: dict[str, float | None]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                if value is not None:
                    self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def random_state() -> dict[str, Any]:
    """Of the generators that loaders and dropout draw from: torch's, Python's, and numpy's where it is loaded."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy"] = [kind, keys.tolist(), *rest]
    return state


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, keys, following = state["python"]
    random.setstate((version, tuple(keys), following))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state and "numpy" in sys.modules:
        sys.modules["numpy"].random.set_state(tuple(state["numpy"]))


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    """Its state in memory of its own."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _only_parts(folder: Path) -> bool:
    """Whether all that lies there is what a killed run left: curves, and files that never took their name."""
    return all(file.name.startswith((".part-", "events.out.")) for file in folder.iterdir())


def _difference(name: str, kept: Any, wanted: Any) -> str:
    if name in ("student", "teacher"):
        return f"is of another run: the {name} is another network; choose another folder"
    return f"is of another run: {name} was {kept} and is {wanted}; give {name} as it was, or choose another folder"
