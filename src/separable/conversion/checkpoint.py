"""What a study keeps in its folder, so that one that was stopped goes on to the network that it would have made.

    FOLDER/study.json              what it is a study of: network, data, example, target, threads, runtimes, versions
    FOLDER/table.json              each layer's options: what they lose, and their times as far as they were taken
    FOLDER/dense.json              times of the dense network
    FOLDER/PLAN/share.json         time of a plan on weights that say nothing
    FOLDER/PLAN/LAYER.safetensors  a layer of it, fitted: its state, its norm's, its error
    FOLDER/PLAN/times.json         times of the fitted network

PLAN and LAYER are digests. Times are kept because plans are made of them: measured again they would make other plans.
A damaged file counts as not there, except study.json: without it, nothing says which study the files belong to.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from separable import __version__, _native, cost, runtimes
from separable.conversion.batches import run
from separable.conversion.kept import Kept, digest
from separable.conversion.survey import Survey
from separable.conversion.table import Option, Table
from separable.errors import InputError, first_line
from separable.inputs import Inputs, tensors
from separable.progress import say

NAME = "study.json"
_FORMAT = 3  # of the folder
_WHOLE = {
    "network": "another network",
    "data": "other data",
    "example": "another example",
    "outputs": "another network",  # of the same layers and weights
}


class Checkpoint(Kept):
    """The folder of one study."""

    def __init__(self, folder: str | Path | None, resume: bool):
        """
        Raises:
            InputError: resume without a folder; a folder of an earlier study without resume, or of something else.
        """
        super().__init__(None if folder is None else Path(folder))
        if self.folder is None:
            if resume:
                raise InputError("resume", resume, "needs checkpoint=FOLDER, the folder of the conversion to continue")
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError("checkpoint", self.folder, "must be a folder, or a name that is free")
        names = {file.name for file in self.folder.iterdir()} if self.folder.exists() else set()
        if NAME in names and not resume:
            rule = "holds an earlier conversion; continue it with resume=True, or choose another folder"
            raise InputError("checkpoint", self.folder, rule)
        if NAME not in names and not all(name.startswith(".part-") for name in names):  # of a writer that was killed
            raise InputError("checkpoint", self.folder, f"holds other files and no {NAME}; choose another folder")

    def open(self, survey: Survey, target: str, compared: Sequence[str]) -> None:
        """Begin the folder, or go on with it. compared: the runtimes that networks are timed in.

        Raises:
            InputError: it is of another study, or cannot be read or written.
        """
        if self.folder is None:
            return
        about, file = _identity(survey, target, compared), self.folder / NAME
        if not file.exists():
            return self.keep(file.stem, about)
        try:
            kept = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            rule = f"cannot be read: {first_line(error)}; choose another folder"
            raise InputError("checkpoint", file, rule) from error
        for name, wanted in about.items():
            if kept.get(name) != wanted:
                was = _WHOLE.get(name) or f"another conversion: {name} was {kept.get(name)} and is {wanted}"
                rule = f"belongs to {was}; pass the one it was started with, or choose another folder"
                raise InputError("checkpoint", self.folder, rule)
        say(f"going on with what {self.folder} holds")

    def table(self, survey: Survey, find: Callable[[], Table]) -> Table:
        """Options of every layer, their times as far as they were taken."""

        def read(data: Any) -> Table:
            plain = {name: [Option(**{**option, "tied": _tuple(option["tied"])}) for option in data[name]]
                     for name in (site.name for site in survey.convertible)}  # fmt: skip
            if any(many[0].form is not None for many in plain.values()):
                raise ValueError("the dense layer stands first")
            return plain

        return self.data("table", find, read, _plain)

    def keep_table(self, table: Table) -> None:
        self.keep("table", _plain(table))

    def forget_times(self) -> None:
        """Drop what was timed; what forms lose and the fitted layers stay."""
        if self.folder is None:
            return
        alone = (self.folder / "dense.json", self.folder / "yardstick.json")
        for file in (*alone, *self.folder.glob("*/share.json"), *self.folder.glob("*/times.json")):
            file.unlink(missing_ok=True)
        table = self._read("table", dict)
        if table is not None:
            self.keep("table", {name: [{**option, "ms": None} for option in many] for name, many in table.items()})

    def plan(self, chosen: Mapping[str, tuple[str, int]]) -> Kept:
        """What is known of the network whose layers take these forms and ranks."""
        return Kept(None if self.folder is None else self.folder / digest(sorted(chosen.items())))


def _plain(table: Table) -> dict[str, Any]:
    return {name: [asdict(option) for option in many] for name, many in table.items()}


def _tuple(values: list[str] | None) -> Any:
    return None if values is None else tuple(values)


def _identity(survey: Survey, target: str, compared: Sequence[str]) -> dict[str, Any]:
    """What must be equal for a folder to be of this study: all that decides its numbers, and where times are taken."""
    model = survey.model
    what_can_go = survey.sites, survey.pairs, survey.blocks
    weights = [*model.named_parameters(), *model.named_buffers()]
    return {
        "format": _FORMAT,
        "separable": __version__,
        "torch": torch.__version__,
        "processor": cost.processor(),
        "threads": torch.get_num_threads(),
        "target": target,
        "runtimes": _at_hand(compared),
        "network": digest(_plainly(model), *what_can_go, *(part for named in weights for part in named)),
        "data": digest(*map(_values, survey.inputs)),
        "example": digest(_values(survey.example)),
        "outputs": digest(*_outputs(survey)),
    }


def _plainly(value: Any) -> str:
    """What `repr` says but for addresses, which are others in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _values(inputs: Inputs) -> str:
    """Of inputs their names, their tensors' digests and all other values."""
    in_words: Callable[[Tensor], Any] = digest
    return _plainly(inputs.map(in_words))


@torch.no_grad()
def _outputs(survey: Survey) -> list[Tensor]:
    """What the network gives for the first batch: its code and plain attributes are seen nowhere else.

    Nothing of a network that throws dice, which never gives the same again.
    """
    first, second = (list(tensors(run(survey.model, survey.inputs[0]))) for _ in range(2))
    return first if digest(*first) == digest(*second) else []


def _at_hand(compared: Sequence[str]) -> str:
    """The runtimes with their versions; the native kernels with the instruction set that they use."""
    versions = runtimes.versions() | {"accelerate": f"with {_native.isa()}"}
    return ", ".join(f"{name} {versions[name]}" if name in versions else name for name in compared)
