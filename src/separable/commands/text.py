"""Sentences: how often a classifier is right about them, and what it says of those that nobody has labelled."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from separable.commands.evaluate import Evaluated
from separable.commands.predict import Row, is_file, standard_input, tell
from separable.data import sentences
from separable.data.sentences import BadLine, Sentence
from separable.errors import InputError
from separable.models.saved_classifier import SavedClassifier
from separable.progress import say

WANTED = "sentences, files of them, or - for standard input"
COLUMNS = ("label", "probability", "text")
AT_ONCE = 4096


def evaluate(
    folder: str,
    data: str,
    *,
    strict: bool = False,
    encoding: str = "utf-8",
    text_column: str | None = None,
    label_column: str | None = None,
    unknown_label: str | None = None,
) -> Evaluated:
    """Accuracy and macro F1, each class, and how well the unknown is told, as at the end of the recipe."""
    from separable.recipes import text, text_reports

    saved = SavedClassifier.load(folder)
    labelled = sentences.read(data, strict, encoding, text_column, label_column)
    if not set(labelled.labels) & set(saved.network.shape.classes):
        rule = f"none of its labels {', '.join(labelled.classes()[:5])} is a class of the network"
        raise InputError("DATA", data, rule)
    if unknown_label is not None and unknown_label not in labelled.labels:
        say(f"no sentence of {data} is labelled {unknown_label!r}, so how the unknown is told is not measured")
    part = text.evaluate(saved, labelled, unknown_label)
    name = Path(data).name
    section, headline = partial(text_reports.section, name, part), text_reports.headline(name, part)
    return Evaluated(part, text_reports.text(part), text_reports.TITLE, section, headline)


def predict(
    folder: str, inputs: list[str], *, encoding: str = "utf-8", text_column: str | None = None
) -> Iterator[Row]:
    """Rows {"text", "label", "probability"}; label None where a sentence looks like none of the classes."""
    saved = SavedClassifier.load(folder)
    items = itertools.chain.from_iterable(_read(place, encoding, text_column) for place in inputs or ["-"])
    while chunk := list(itertools.islice(items, AT_ONCE)):
        found = iter(saved.classify([item.text for _, item in chunk if isinstance(item, Sentence)]))
        for place, item in chunk:
            if isinstance(item, BadLine):
                yield tell({"input": f"{place}, line {item.line}:", "error": item.reason})
            else:
                label, chance = next(found)
                yield {"text": item.text, "label": label, "probability": round(chance, 6)}


def _read(place: str, encoding: str, column: str | None) -> Iterator[tuple[str, Sentence | BadLine]]:
    if place == "-":
        yield from ((place, Sentence(line.strip(), "")) for line in standard_input(encoding))
    elif is_file(place):
        yield from ((place, item) for item in sentences.read_texts(place, encoding, column))
    else:
        yield place, Sentence(place.strip(), "")
