"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere, silence inside a library call.

Rooms write `for batch in track(batches, "calibrating")`; whoever talks to a person opens `shown()` around the call.
All of it goes to standard error: standard output belongs to results.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
_LINE_EVERY_S = 5.0
_NAMED = 5
_shown: ContextVar[bool] = ContextVar("separable_progress_shown", default=False)


@contextmanager
def shown() -> Iterator[None]:
    """Show the progress of everything called inside."""
    token = _shown.set(True)
    try:
        yield
    finally:
        _shown.reset(token)


@contextmanager
def hidden() -> Iterator[None]:
    """Show nothing of what is called inside: of many small pieces of one work, whose own progress is shown."""
    token = _shown.set(False)
    try:
        yield
    finally:
        _shown.reset(token)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items, one by one, while their progress is shown."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not _shown.get():
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, description, total)
    else:
        yield from _lines(items, description, total)


def say(text: str) -> None:
    """One line about where the work stands, where progress is shown."""
    if _shown.get():
        print(text, file=sys.stderr, flush=True)


def say_skipped(place: object, reasons: Sequence[object], total: int, kind: str) -> None:
    """Name the first of what could not be used of a place, and count all; nothing where all could be used."""
    for reason in reasons[:_NAMED]:
        say(f"skipped {place} {reason}")
    if reasons:
        say(f"{len(reasons)} of {total} {kind} of {place} could not be used and were skipped")


def _bar(items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=description)


def _lines(items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    last, done = time.monotonic(), 0
    for item in items:
        yield item
        done += 1
        if time.monotonic() - last >= _LINE_EVERY_S and done != total:
            last = time.monotonic()
            say(f"{description}: {done}" + (f" of {total}" if total else ""))
    say(f"{description}: {done} done")
