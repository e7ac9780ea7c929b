"""What a study keeps in its folder, so that one that was stopped goes on to the network that it would have made.

    FOLDER/study.json              what it is a study of: network, data, example, target, threads, versions
    FOLDER/table.json              each layer's options: what they lose, and their times as far as they were taken
    FOLDER/dense.json              times of the dense network
    FOLDER/PLAN/share.json         time of a plan on weights that say nothing
    FOLDER/PLAN/LAYER.safetensors  a layer of it, fitted: its state, its norm's, its error
    FOLDER/PLAN/times.json         times of the fitted network

PLAN and LAYER are digests. Times are kept because plans are made of them: measured again they would make other plans.
A damaged file counts as not there, but for study.json, without which nobody knows whose the others are.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from separable import __version__, cost
from separable.conversion.kept import Kept, digest
from separable.conversion.survey import Survey
from separable.conversion.table import Option, Table
from separable.errors import InputError, first_line
from separable.progress import say

NAME = "study.json"
_FORMAT = 1  # of the folder
_WHOLE = {"network": "another network", "data": "other data", "example": "another example"}


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

    def open(self, survey: Survey, target: str) -> None:
        """Begin the folder, or go on with it.

        Raises:
            InputError: it is of another study, or cannot be read or written.
        """
        if self.folder is None:
            return
        about, file = _identity(survey, target), self.folder / NAME
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
                rule = f"is of {was}; give what it was begun with, or choose another folder"
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

    def plan(self, chosen: Mapping[str, tuple[str, int]]) -> Kept:
        """What is known of the network whose layers take these forms and ranks."""
        return Kept(None if self.folder is None else self.folder / digest(sorted(chosen.items())))


def _plain(table: Table) -> dict[str, Any]:
    return {name: [asdict(option) for option in many] for name, many in table.items()}


def _tuple(values: list[str] | None) -> Any:
    return None if values is None else tuple(values)


def _identity(survey: Survey, target: str) -> dict[str, Any]:
    """What must be equal for a folder to be of this study: all that decides its numbers, and where times are taken."""
    model = survey.model
    structure = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # functions in it have another address in each process
    what_can_go = survey.sites, survey.pairs, survey.blocks
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "format": _FORMAT,
        "separable": __version__,
        "torch": torch.__version__,
        "processor": cost.processor(),
        "threads": torch.get_num_threads(),
        "target": target,
        "network": digest(structure, *what_can_go, *(part for named in tensors for part in named)),
        "data": digest(*(tensor for batch in survey.inputs for tensor in batch.tensors())),
        "example": digest(*survey.example.tensors()),
    }
