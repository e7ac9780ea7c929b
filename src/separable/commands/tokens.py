"""Words: how many entities a tagger finds in them, and what it finds in those that nobody has tagged."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from separable.commands.evaluate import Evaluated
from separable.commands.predict import Row, is_file, standard_input, tell
from separable.data import conll, untagged
from separable.data.entities import iob2, spans
from separable.data.untagged import Words
from separable.models.saved_tagger import SavedTagger

WANTED = "sentences, files of them, or - for standard input"


def evaluate(folder: str, data: str, *, strict: bool = False) -> Evaluated:
    """Strict entities and single tokens, as at the end of the recipe."""
    from separable.recipes import token_reports, tokens

    part = tokens.evaluate(SavedTagger.load(folder), conll.read(data, strict))
    name = Path(data).name
    section, headline = partial(token_reports.section, name, part), token_reports.headline(name, part)
    return Evaluated(part, token_reports.text(part), token_reports.TITLE, section, headline)


def predict(folder: str, inputs: list[str], *, columns: bool | None = None) -> Iterator[Row]:
    """Rows {"tokens", "tags", "entities"}, tags in IOB2; of a plain sentence also its "text" and places in it."""
    saved = SavedTagger.load(folder)
    for place, group in itertools.groupby(inputs or ["-"], lambda p: p if p == "-" or is_file(p) else None):
        if place is None:  # sentences given beside each other are one document
            found = [untagged.sentence(text) for text in group]
        elif place == "-":
            found = [untagged.sentence(line) for line in standard_input("utf-8")]
        else:
            found = untagged.read(place, columns)
        good = [words for words in found if not words.wrong]
        tagged = iter(saved.tag([w.words for w in good], [w.document for w in good]))
        for words in found:
            if words.wrong:
                yield tell({"input": f"{place}, ", "error": words.wrong})
            else:
                yield _tagged(words, next(tagged))


def line(row: Row) -> str:
    """Columns of word and tag, and an empty line behind the sentence."""
    return "".join(f"{word} {tag}\n" for word, tag in zip(row["tokens"], row["tags"], strict=True))


def _tagged(words: Words, said: list[str]) -> Row:
    found = spans(said)
    entities: list[Row] = []
    for kind, first, end in found:
        entity: Row = {"kind": kind, "text": " ".join(words.words[first:end]), "tokens": [first, end]}
        if words.text is not None:
            start, stop = words.places[first][0], words.places[end - 1][1]
            entity |= {"text": words.text[start:stop], "characters": [start, stop]}
        entities.append(entity)
    row: Row = {} if words.text is None else {"text": words.text}
    return row | {"tokens": words.words, "tags": iob2(found, len(said)), "entities": entities}
