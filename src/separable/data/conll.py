"""Tagged sentences from files: CoNLL columns, JSON lines, and Chinese characters (two columns, BMES).

Columns: one token a line, word first and tag last, separated by spaces or tabs; an empty line ends a sentence and a
line that begins with -DOCSTART- begins a document. JSON lines: {"tokens": [...], "tags": [...]} a line, optionally
"document". Tags of every scheme are read into spans and kept as BIOES. A file ending in .xz or .gz is unpacked as read.
A bad line costs its sentence: named with its number, counted, and skipped, or refused where `strict`.
Source: Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task", section 2.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from separable.data import entities
from separable.data.packed import lines_of, open_packed
from separable.errors import InputError
from separable.progress import say_skipped

SEPARATOR = re.compile(r"[ \t]+")


@dataclass
class Sentence:
    """Words with their BIOES tags; `document` numbers the documents of a file, `line` is where it begins."""

    words: list[str]
    tags: list[str]
    document: int = 0
    line: int = 0


@dataclass
class Corpus:
    """The sentences of one file, and what was wrong in it: one line of text for each sentence that was left out."""

    sentences: list[Sentence]
    skipped: list[str] = field(default_factory=list)

    def kinds(self) -> list[str]:
        """The kinds of entities that occur."""
        return sorted({entities.split(tag)[1] for s in self.sentences for tag in s.tags} - {""})


def read(path: Path | str, strict: bool = False) -> Corpus:
    """Read a file of columns or JSON lines (names ending in .json, .jsonl or .ndjson, perhaps packed).

    Raises:
        InputError: the file is missing, is not UTF-8, holds no sentence, or, where `strict`, has a bad line.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_json = bool({".json", ".jsonl", ".ndjson"} & set(suffixes))
    corpus = Corpus([])
    with open_packed(path) as file:
        lines = lines_of(file, path)
        for item in _json_lines(lines) if is_json else _columns(lines):
            if isinstance(item, Sentence):
                corpus.sentences.append(item)
            elif strict:
                raise InputError("file", str(path), item)
            else:
                corpus.skipped.append(item)
    if not corpus.sentences:
        reason = f"; the first problem: {corpus.skipped[0]}" if corpus.skipped else ""
        raise InputError("file", str(path), f"holds no tagged sentence{reason}")
    say_skipped(path.name, corpus.skipped, len(corpus.sentences) + len(corpus.skipped), "sentences")
    return corpus


def _columns(lines: Iterator[tuple[int, str]]) -> Iterator[Sentence | str]:
    words: list[str] = []
    tags: list[str] = []
    document, begins, wrong = 0, 0, ""
    for number, line in (*lines, (0, "")):
        fields = SEPARATOR.split(line.strip(" \t"))  # not str.split, which would lose a wide space that is a token
        if fields[0] in ("", "-DOCSTART-"):
            if wrong:
                yield f"{wrong} (the sentence from line {begins} is left out)"
            elif words:
                yield Sentence(words, entities.bioes(entities.spans(tags), len(tags)), document, begins)
            document += fields[0] == "-DOCSTART-"
            words, tags, begins, wrong = [], [], 0, ""
            continue
        begins = begins or number
        if len(fields) < 2:
            wrong = wrong or f"line {number}: one column, {line.strip()[:40]!r}, where word and tag are needed"
        elif not entities.is_tag(fields[-1]):
            wrong = (
                wrong or f"line {number}: {fields[-1][:40]!r} is no tag; tags are O or B-, I-, E-, S-, M- and a kind"
            )
        else:
            words.append(fields[0])
            tags.append(fields[-1])


def _json_lines(lines: Iterator[tuple[int, str]]) -> Iterator[Sentence | str]:
    documents: dict[object, int] = {}
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            words, tags = row["tokens"], row.get("tags", row.get("ner_tags"))
        except (ValueError, KeyError, TypeError, AttributeError):
            yield f'line {number}: must be a JSON object with "tokens" and "tags"'
            continue
        if not are_strings(words) or not are_strings(tags) or len(words) != len(tags):
            yield f"line {number}: tokens and tags must be two lists of text, equally long and not empty"
        elif not all(entities.is_tag(tag) for tag in tags):
            wrong = next(tag for tag in tags if not entities.is_tag(tag))
            yield f"line {number}: {wrong[:40]!r} is no tag; tags are O or B-, I-, E-, S-, M- and a kind"
        else:
            document = documents.setdefault(str(row.get("document", number)), len(documents))
            yield Sentence(words, entities.bioes(entities.spans(tags), len(tags)), document, number)


def are_strings(value: object) -> bool:
    """Whether this is a list of text, neither it nor any of its members empty."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) and v for v in value)
