"""Images named in a csv: a file and its label in each line, the file relative to the csv's own folder.

Commas, semicolons or tabs; UTF-8; a first line of names (file or path, label or class) is understood, and further
columns are passed over. A line that cannot be used is skipped and told with its number.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from separable.data.files import Files
from separable.errors import InputError

_FILE = ("file", "filename", "file_name", "path", "image")
_LABEL = ("label", "class", "category", "target")


def is_list(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


def read(path: Path, classes: Sequence[str] | None = None) -> Files:
    """What the list names; classes are sorted by name, or by number where all are numbers.

    Raises:
        InputError: the file is not UTF-8 (with the line), names no image, or has a label that is none of `classes`.
    """
    text = _text(path)
    first = text.partition("\n")[0]
    rows = csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    file_column, label_column = 0, 1
    found, labels = Files(), []
    for row in rows:
        names = [cell.strip().lower() for cell in row]
        if rows.line_num == 1 and any(n in _FILE for n in names) and any(n in _LABEL for n in names):
            file_column = next(i for i, n in enumerate(names) if n in _FILE)
            label_column = next(i for i, n in enumerate(names) if n in _LABEL)
            continue
        file, label = (row[i].strip() if i < len(row) else "" for i in (file_column, label_column))
        reason = _reason(path, file, label) if any(names) else None
        if reason:
            found.skipped.append((f"{path.name} line {rows.line_num}", reason))
        elif file:
            if classes is not None and label not in classes:
                told = f"line {rows.line_num} has the label {label}"
                raise InputError("data", str(path), f"{told}, which is none of the network's {len(classes)} classes")
            found.names.append(file)
            labels.append(label)
    if not labels:
        told = "; {}: {}".format(*found.skipped[0]) if found.skipped else ""
        raise InputError("data", str(path), f"names no image and its label in any line{told}")
    found.classes = list(classes) if classes is not None else sorted({*labels}, key=_order)
    index = {name: i for i, name in enumerate(found.classes)}
    found.labels = [index[label] for label in labels]
    return found


def _text(path: Path) -> str:
    contents = path.read_bytes()
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = contents[: error.start].count(b"\n") + 1
        raise InputError("data", str(path), f"line {line} is not UTF-8; save the file in that encoding") from None


def _reason(path: Path, file: str, label: str) -> str | None:
    if not file or not label:
        return "has no " + ("file" if not file else "label")
    return None if (path.parent / file).is_file() else f"names {file}, which is not there"


def _order(label: str) -> tuple[bool, int, str]:
    """Numbers by their size, ahead of names."""
    number = label.isdecimal()
    return not number, int(label) if number else 0, label
