"""Sounds: how often a network is right about them, and what it hears in those that nobody has labelled."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from separable import progress
from separable.commands.evaluate import Evaluated
from separable.commands.predict import Row, tell
from separable.data import files, wav
from separable.errors import InputError
from separable.progress import track
from separable.recipes import audio_reports, saved_listener
from separable.recipes.saved_listener import Listener

WANTED = "sound files, folders or tars of them"
COLUMNS = ("input", "seconds", "label", "probability")


def evaluate(
    folder: str, data: str, *, strict: bool = False, names: str = wav.FOLDERS, part: str | None = None
) -> Evaluated:
    """Accuracy, each class, confusion and mistakes, as at the end of the recipe, of all sounds or of a part."""
    listener = Listener.load(Path(folder))
    sounds = wav.read(data, names, rate=listener.features.rate, strict=strict)
    clips = sounds.divide(part=part)["part"] if part else sounds.clips
    if not {clip.parts["label"] for clip in clips} & set(listener.classes):
        raise InputError("DATA", data, "none of its sounds is of a class of the network")
    measured = saved_listener.evaluate(listener, clips) | {"skipped": sounds.skipped}
    name = f"{Path(data).name}, {part}" if part else Path(data).name
    section = partial(audio_reports.section, name, measured, clips, sounds.rate)
    headline = audio_reports.headline(name, measured)
    return Evaluated(measured, audio_reports.text(measured), audio_reports.TITLE, section, headline)


def predict(folder: str, inputs: list[str], *, every: float | None = None) -> Iterator[Row]:
    """Rows {"input", "label", "probability"}; with `every`, one each so many seconds, with "seconds" heard so far."""
    listener = Listener.load(Path(folder))
    for place in inputs:
        if not Path(place).exists():
            raise InputError("INPUT", place, "does not exist")
    for place in track(inputs, "listening"):
        yield from _whole(listener, place) if every is None else _streamed(listener, place, every)


def _whole(listener: Listener, place: str) -> Iterator[Row]:
    single = Path(place).is_file() and not files.is_tar(Path(place))
    with progress.hidden() if single else contextlib.nullcontext():
        try:
            read = wav.read(place, None, rate=listener.features.rate)
        except InputError as error:
            yield tell({"input": place, "error": error.rule})
            return
        rows: list[Row] = [{"file": name, "error": reason} for name, reason in read.skipped]
        rows += saved_listener.predict(listener, read)
    for row in sorted(rows, key=lambda row: row["file"]):
        name = row.pop("file")
        told = {"input": place if single else f"{place}/{name}", **row}
        yield tell(told) if "error" in row else told


def _streamed(listener: Listener, place: str, every: float) -> Iterator[Row]:
    """A long sound as it goes by, in constant memory."""
    features, stream, frames = listener.features, listener.stream(), 0
    step = round(every * features.rate / features.hop)  # frames between two rows
    if step < 1:
        raise InputError("--every", every, f"must be at least a frame, {features.hop / features.rate:g} seconds")
    for piece in wav.pieces(place, features.rate):
        for chances in stream.hear(piece).softmax(1):
            frames += 1
            if frames % step == 0:
                chance, number = chances.max(0)
                yield {
                    "input": place,
                    "seconds": round(((frames - 1) * features.hop + features.window) / features.rate, 3),
                    "label": listener.classes[int(number)],
                    "probability": round(float(chance), 6),
                }
