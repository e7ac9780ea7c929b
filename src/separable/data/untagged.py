"""Words to be tagged: from columns whose first is the word, from JSON lines with "tokens", or from plain sentences.

A plain sentence is cut into words as CoNLL-2003 is: marks stand alone, but for those inside numbers, abbreviations and
words with a hyphen; 's and n't are words of their own; a Chinese, Japanese or Korean character is one.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from separable.data import conll
from separable.data.packed import lines_of, open_packed
from separable.data.positions import IDEOGRAPH
from separable.errors import InputError

_LETTER = rf"[^\W\d_{IDEOGRAPH}]"
_WORD = re.compile(
    rf"[{IDEOGRAPH}]"
    rf"|(?:{_LETTER}\.){{2,}}"  # U.S.
    r"|\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Gen|Sen|Gov|Rep|Lt|Col|Inc|Corp|Ltd|Co|vs)\."
    r"|\d+(?:[.,:/-]\d+)*"
    rf"|{_LETTER}+?(?=n't\b)|n't\b|'{_LETTER}{{1,2}}\b"
    rf"|{_LETTER}+(?:-[\w{IDEOGRAPH}]+)*"
    r"|\.\.\.|--|\S"
)
_JSON = {".json", ".jsonl", ".ndjson"}
_PLAIN = {"", ".txt", ".text", ".md"}


@dataclass
class Words:
    """Of one sentence its words; where they stand in the plain sentence, if it was one; or why there are none."""

    words: list[str]
    document: int = 0
    text: str | None = None
    places: list[tuple[int, int]] = field(default_factory=list)  # first character of each word, and behind its last
    wrong: str = ""


def sentence(text: str, document: int = 0) -> Words:
    """A plain sentence, cut into words.

    >>> sentence("U.S.-born Peter's 1,000 cats didn't.").words
    ['U.S.', '-', 'born', 'Peter', "'s", '1,000', 'cats', 'did', "n't", '.']
    """
    found = list(_WORD.finditer(text))
    return Words([m.group() for m in found], document, text, [m.span() for m in found])


def read(path: Path | str, columns: bool | None = None) -> list[Words]:
    """The sentences of a file, in order; those with something wrong in their place.

    Args:
        path: names ending in .jsonl, .json or .ndjson hold JSON lines; perhaps packed (.xz, .gz).
        columns: whether other files hold columns rather than a sentence a line; where not given, files without an
            ending and .txt, .text, .md hold sentences, all else columns (.conll, .testb, ...).

    Raises:
        InputError: the file is missing, is not UTF-8, or holds nothing.
    """
    path = Path(path)
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in (".xz", ".gz")]
    ending = endings[-1] if endings else ""
    with open_packed(path) as file:
        lines = lines_of(file, path)
        if columns is None and ending in _JSON:
            found = list(_json_lines(lines))
        elif ending not in _PLAIN if columns is None else columns:
            found = list(_columns(lines))
        else:
            found = [sentence(line) for _, line in lines]
    if not found:
        raise InputError("file", str(path), "holds nothing to tag")
    return found


def _columns(lines: Iterator[tuple[int, str]]) -> Iterator[Words]:
    words: list[str] = []
    document = 0
    for _, line in (*lines, (0, "")):
        first = conll.SEPARATOR.split(line.strip(" \t"))[0]
        if first not in ("", "-DOCSTART-"):
            words.append(first)
            continue
        if words:
            yield Words(words, document)
        document += first == "-DOCSTART-"
        words = []


def _json_lines(lines: Iterator[tuple[int, str]]) -> Iterator[Words]:
    documents: dict[str, int] = {}
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            words = row["tokens"]
        except (ValueError, KeyError, TypeError):
            words = None
        if not conll.are_strings(words):
            yield Words([], wrong=f'line {number}: must be a JSON object with "tokens", a list of text')
            continue
        yield Words(words, documents.setdefault(str(row.get("document", number)), len(documents)))
