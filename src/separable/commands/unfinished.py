"""What a conversion that has not ended leaves beside --out, so that a stopped one goes on.

OUT.converting/asked.json      what was asked for
OUT.converting/conversion      the checkpoint of `convert`
OUT.converting/distillation    the checkpoints of `distill`, and curves for TensorBoard
"""

import json
from pathlib import Path
from typing import Any

from separable import atomic
from separable.errors import InputError, first_line

_ASKED, _BUDGET = "asked.json", "--budget"


def folder_of(out: Path) -> Path:
    place = out.absolute()
    return place.with_name(f"{place.name}.converting")


class Unfinished:
    """The folder of one conversion.

    Args:
        out: where the result is to go.
        asked: what decides the converted network, as plain data by the name of its option.
        resume: take up what is there. overwrite: throw it away.

    Raises:
        InputError: there is one that is neither to be taken up nor thrown away, is of something else, or was made by
            something else.
    """

    def __init__(self, out: Path, asked: dict[str, Any], *, resume: bool, overwrite: bool):
        self.folder, self.asked, self.resume = folder_of(out), asked, resume
        self.conversion, self.distillation = self.folder / "conversion", self.folder / "distillation"
        self.begun = False  # whether anything was done here; before, the folder is as an earlier run left it
        self._check_ours()
        if not self._holds_something():
            return
        if resume:
            self._check()
        elif not overwrite:
            rule = "holds a conversion that did not end; go on with --resume, or begin anew with --overwrite"
            raise InputError("--out", self.folder, rule)

    def _holds_something(self) -> bool:
        return self.folder.exists() and any(self.folder.iterdir())

    def _check_ours(self) -> None:
        """Whatever else has this name is never deleted."""
        atomic.check_folder(self.folder, overwrite=True, mark=_ASKED, argument="--out")

    def _check(self) -> None:
        """Of a budget that was refused nothing stands there: another can be asked for."""
        try:
            before = dict(json.loads((self.folder / _ASKED).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            rule = f"{_ASKED} in it cannot be read: {first_line(error)}; begin anew with --overwrite"
            raise InputError("--resume", self.folder, rule) from error
        for name, wanted in self.asked.items():
            if before.get(name) != wanted and not (name == _BUDGET and name not in before):
                was = f"was begun with {name} {before.get(name)}, not {wanted}"
                rule = f"{was}; ask for the same, or begin anew with --overwrite"
                raise InputError("--resume", self.folder, rule)

    def begin(self) -> None:
        """Make the folder, unless there is one to go on with."""
        if self.resume and self._holds_something():
            self._write(self.asked)
        else:
            self._check_ours()
            self.remove()
            with atomic.folder_beside(self.folder) as beside:
                (beside / _ASKED).write_text(json.dumps(self.asked, indent=1), encoding="utf-8")
        self.begun = True

    def open_to_another_budget(self) -> None:
        """The one that was asked for was refused."""
        self._write({name: value for name, value in self.asked.items() if name != _BUDGET})

    def _write(self, asked: dict[str, Any]) -> None:
        with atomic.write_beside(self.folder / _ASKED, argument="--out") as beside:
            beside.write_text(json.dumps(asked, indent=1), encoding="utf-8")

    def remove(self) -> None:
        atomic.remove_folder(self.folder)
