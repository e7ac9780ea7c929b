"""What a trained network makes of images, sentences, words or sounds that nobody has labelled.

A row an input, in their order; an input that cannot be used is told, keeps its row in JSON, and in the end makes the
exit code 2: nothing else is lost. Each task's own part is in the file of its name.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from separable import atomic
from separable.commands.network import call, task_of
from separable.errors import InputError
from separable.progress import say

Row = dict[str, Any]
_TEXT_FILES = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xz", ".gz", ".conll", ".iob", ".bio"}


def run(source: str, inputs: list[str], options: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Write a row for each input, to `out` or standard output.

    Raises:
        InputError: the network or an input is not there; or, once all is written, that some inputs could not be used.
    """
    folder, task = task_of(source)
    if not inputs and (not task.WANTED.endswith("standard input") or sys.stdin.isatty()):
        raise InputError("INPUT", "none", f"must be given: {task.WANTED}")
    line = getattr(task, "line", None) or partial(_tabbed, task.COLUMNS)
    rows = call(task.predict, folder, inputs, options)
    with _opened(out) as file:
        count, wrong = _write(rows, file, partial(json.dumps, ensure_ascii=False) if as_json else line, as_json)
    if out is not None:
        say(f"Written to {out}: {count - len(wrong)} predictions")
    if wrong:
        rest = "; all others are predicted" if len(wrong) < count else ""
        rule = f"cannot be used, the first: {wrong[0]['input']} {wrong[0]['error']}{rest}"
        raise InputError("INPUT", f"{len(wrong)} of {count}", rule)


def _write(rows: Iterator[Row], file: TextIO, line: Callable[[Row], str], as_json: bool) -> tuple[int, list[Row]]:
    """How many rows there were, and those of them that say an error."""
    count, wrong = 0, []
    for row in rows:
        count += 1
        if "error" in row:
            wrong.append(row)
        if as_json or "error" not in row:
            print(line(row), file=file)
    return count, wrong


@contextmanager
def _opened(out: Path | None) -> Iterator[TextIO]:
    if out is not None:
        with atomic.write_beside(out, argument="--out") as beside, open(beside, "w", encoding="utf-8") as file:
            yield file
        return
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes at its end
        raise SystemExit(0) from None


def _tabbed(keys: Sequence[str], row: Row) -> str:
    values = {**row, "label": row["label"] or "(none)", "probability": f"{row['probability']:.4f}"}
    return "\t".join(" ".join(str(values[key]).split()) for key in keys if key in values)


def tell(row: Row) -> Row:
    """Say that an input cannot be used; its row goes on."""
    say(f"skipped {row['input']} {row['error']}")
    return row


def is_file(place: str) -> bool:
    """Whether an argument names a file; one that can only be meant to, but is not there, is refused."""
    path = Path(place)
    try:
        if path.is_file():
            return True
    except OSError:  # a sentence too long for a name
        return False
    if place.strip() and " " not in place and (path.suffix.lower() in _TEXT_FILES or path.is_dir()):
        raise InputError("INPUT", place, "is no file; a sentence that looks like one goes through standard input")
    return False


def standard_input(encoding: str) -> list[str]:
    """Its lines, cut where those of a file are: a sentence may hold U+2028 and the like."""
    try:
        content = sys.stdin.buffer.read().decode("utf-8-sig" if encoding == "utf-8" else encoding)
        return [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")] if content else []
    except (UnicodeDecodeError, LookupError) as error:
        raise InputError("standard input", f"read as {encoding}", f"cannot be decoded: {error}") from None
