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


def track(items: Iterable[Item], description: str, total: int | None = None, *, done: int = 0) -> Iterator[Item]:
    """The items, one by one, while their progress and the time left are shown.

    total: of the whole work, of which `done` were done before, in a run that is resumed.
    """
    if total is None and isinstance(items, Sized):
        total = done + len(items)
    if not _shown.get():
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, description, total, done)
    else:
        yield from _lines(items, description, total, done)


def duration(seconds: float) -> str:
    """In the words of a person who waits.

    >>> duration(7.2), duration(125), duration(4000)
    ('7 s', '2 min', '1 h 7 min')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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


def _bar(items: Iterable[Item], description: str, total: int | None, done: int) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, completed=done, description=description)


def _lines(items: Iterable[Item], description: str, total: int | None, done: int) -> Iterator[Item]:
    began = last = time.monotonic()
    before = done
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S and done != total:
            last = now
            say(
                f"{description}: {done}"
                + (f" of {total}" if total else "")
                + _left(now - began, done - before, total, done)
            )
    say(f"{description}: {done} done")


def _left(seconds: float, worked: int, total: int | None, done: int) -> str:
    """At the pace so far; nothing where the end is not known."""
    if not total or done > total:
        return ""
    return f", {duration(seconds / worked * (total - done))} left"
