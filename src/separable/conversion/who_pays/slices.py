"""Named parts of the data, in the ways in which people have them, as masks; and a reader of lists of files."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from separable.errors import InputError
from separable.progress import say

_FORMS = (
    "must be a mask of as many booleans, a list of example numbers, a set of example numbers or file names, "
    "or a name for each example"
)


def masks(slices: Mapping[str, Any] | None, examples: int, files: Sequence[str] | None) -> dict[str, Tensor]:
    """A boolean mask [examples] for each slice.

    A mapping may hold, under a slice's name: a mask; a list of example numbers; a set of example numbers or of file
    names. A sequence of strings, one for each example, makes a slice of each value: {"light": ["day", "night", ...]}
    gives "light: day" and "light: night"; an empty string or None puts an example in none.

    Raises:
        InputError: anything else, a number or file that is not in the data, a slice without an example.
    """
    if slices is None:
        return {}
    if not isinstance(slices, Mapping):
        raise InputError("slices", type(slices).__name__, 'must be a mapping, as {"night": [3, 8, 12]}')
    found: dict[str, Tensor] = {}
    for name, given in slices.items():
        for full, mask in _read(str(name), given, examples, files).items():
            if not mask.any():
                raise InputError("slices", full, "holds no example of the data")
            found[full] = mask
    return found


def read_slices(file: str | Path) -> dict[str, set[str]]:
    """The slices that a csv names: a file and a slice in each line, after a first line that says `file,slice`.

    A file may be in several slices, a line for each. Commas, semicolons or tabs; UTF-8.

    Raises:
        InputError: the file cannot be read, has not these columns, or a line lacks one (says which).
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError("slices", str(file), f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError("slices", str(file), "is not UTF-8; save the file in that encoding") from None
    first = text.partition("\n")[0]
    rows = csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    head = [cell.strip().lower() for cell in next(rows, [])]
    if "file" not in head or "slice" not in head:
        raise InputError("slices", str(file), "must begin with a line of column names, file and slice among them")
    found: dict[str, set[str]] = {}
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        name, part = (row[i].strip() if i < len(row) else "" for i in (head.index("file"), head.index("slice")))
        if not name or not part:
            raise InputError("slices", str(file), f"line {rows.line_num} has no {'slice' if name else 'file'}")
        found.setdefault(part, set()).add(name)
    if not found:
        raise InputError("slices", str(file), "names no file and its slice in any line")
    return found


def _read(name: str, given: Any, examples: int, files: Sequence[str] | None) -> dict[str, Tensor]:
    if isinstance(given, (set, frozenset)):
        return {name: _members(name, sorted(given, key=str), examples, files)}
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise InputError("slices", f"{name}, a {type(given).__name__}", _FORMS)
    values = given.tolist() if hasattr(given, "tolist") else list(given)  # tensors, arrays, columns of tables
    if not values:
        return {name: torch.zeros(examples, dtype=torch.bool)}
    if all(isinstance(value, bool) for value in values):
        _check_length(name, values, examples)
        return {name: torch.tensor(values, dtype=torch.bool)}
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return {name: _members(name, values, examples, files)}
    if all(value is None or isinstance(value, str) for value in values):
        _check_length(name, values, examples)
        parts = sorted({value for value in values if value})
        return {f"{name}: {part}": torch.tensor([value == part for value in values]) for part in parts}
    raise InputError("slices", f"{name}, a {type(given).__name__}", _FORMS)


def _members(name: str, members: Sequence[Any], examples: int, files: Sequence[str] | None) -> Tensor:
    mask = torch.zeros(examples, dtype=torch.bool)
    if all(isinstance(member, str) for member in members):
        if files is None:
            rule = "names files; give the data as batches of (inputs, labels, files)"
            raise InputError("slices", name, rule)
        wanted = set(members)
        missing = sorted(wanted - set(files))
        if len(missing) == len(wanted):
            raise InputError("slices", name, f"none of its {len(wanted)} files is in the data, as {missing[0]}")
        if missing:  # images that could not be read, say
            say(f"slice {name}: {len(missing)} of {len(wanted)} files are not in the data, as {missing[0]}")
        return torch.tensor([file in wanted for file in files])
    for member in members:
        if isinstance(member, bool) or not isinstance(member, int):
            raise InputError("slices", f"{name}, {member!r} in it", _FORMS)
        if not 0 <= member < examples:
            raise InputError("slices", f"{name}, example {member}", f"must be from 0 to {examples - 1}")
        mask[member] = True
    if len(set(members)) < len(members):
        raise InputError(
            "slices", name, "names an example twice; for a value of each example give strings, as '0', '1'"
        )
    return mask


def _check_length(name: str, values: Sequence[Any], examples: int) -> None:
    if len(values) != examples:
        raise InputError("slices", f"{name}, {len(values)} values", f"must have one for each of {examples} examples")
