"""Labelled sentences from files: csv and tsv with a first line of names, JSON lines, and `text@label` lines.

The ending of the name decides: .csv, .tsv, .json/.jsonl/.ndjson; any other file is `text@label`, split at its last "@".
.xz and .gz are unpacked as read. Fields of a csv may be quoted and hold line ends; a tsv has no quotes. Text is UTF-8
unless an encoding is named; either kind of line end serves. A bad line costs its sentence: it is named with its number,
counted, and skipped, or refused where `strict`. Text in another encoding than was said is refused, never read wrongly.
Source: RFC 4180 (csv); jsonlines.org.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from separable.data.packed import open_packed
from separable.errors import InputError
from separable.progress import say_skipped

TEXTS = ("text", "sentence", "title", "utterance", "query", "headline", "标题", "文本", "句子")
LABELS = ("label", "category", "intent", "class", "sentiment", "正负面", "标签", "类别")
_TABLES, _JSON = {".csv", ".tsv"}, {".json", ".jsonl", ".ndjson"}
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_FEW_HAN = 4  # letters with accents may look like fewer by chance
_LONGEST = 100_000  # characters of a sentence; a field beyond is a quote that was never closed


@dataclass
class Sentence:
    """A text with its label; `line` is where it stands in its file."""

    text: str
    label: str
    line: int = 0


@dataclass
class BadLine:
    """What is wrong in a line, and its label where that could be read."""

    line: int
    reason: str
    label: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass
class Corpus:
    """The sentences of one file, and the lines that were left out."""

    sentences: list[Sentence]
    skipped: list[BadLine] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [s.text for s in self.sentences]

    @property
    def labels(self) -> list[str]:
        return [s.label for s in self.sentences]

    def classes(self) -> list[str]:
        """The labels that occur, in order."""
        return sorted(set(self.labels))

    def empty_classes(self) -> dict[str, int]:
        """Labels that stand on skipped lines only, and on how many."""
        lost = Counter(bad.label for bad in self.skipped if bad.label)
        return {label: count for label, count in sorted(lost.items()) if label not in set(self.labels)}

    def check_trainable(self, path: Path) -> None:
        """Refuse a training set of one class, or one that lost a class to bad lines."""
        empty = self.empty_classes()
        if empty:
            named = ", ".join(f"{label!r} ({count} bad lines)" for label, count in empty.items())
            raise InputError(
                "train", str(path), f"leaves classes without a sentence: {named}; the first: {self.skipped[0]}"
            )
        if len(self.classes()) < 2:
            raise InputError("train", str(path), f"holds one class only, {self.classes()}")


def read(
    path: Path | str,
    strict: bool = False,
    encoding: str = "utf-8",
    text_column: str | None = None,
    label_column: str | None = None,
) -> Corpus:
    """Read a file of labelled sentences.

    Args:
        path: the file.
        strict: refuse a file that has a bad line, rather than leave the line out.
        encoding: as Python names it: "utf-8", "latin-1", "gb18030", "utf-16".
        text_column, label_column: names of columns or JSON keys; where not given, the first of the usual names
            (`TEXTS`, `LABELS`) that occurs.

    Raises:
        InputError: the file is missing, is not in this encoding, lacks the columns, holds no sentence, or, where
            `strict`, has a bad line.
    """
    path = Path(path)
    items = _items(path, _decode(path, encoding), _Columns(path, text_column, label_column))
    corpus = Corpus([])
    for item in items:
        item = _checked(item)
        if isinstance(item, Sentence):
            corpus.sentences.append(item)
        elif strict:
            raise InputError("file", str(path), str(item))
        else:
            corpus.skipped.append(item)
    if not corpus.sentences:
        reason = f"; the first problem: {corpus.skipped[0]}" if corpus.skipped else ""
        raise InputError("file", str(path), f"holds no labelled sentence{reason}")
    say_skipped(path.name, corpus.skipped, len(corpus.sentences) + len(corpus.skipped), "sentences")
    return corpus


def read_texts(path: Path | str, encoding: str = "utf-8", text_column: str | None = None) -> list[Sentence | BadLine]:
    """Sentences without labels, in order, an empty one too: of csv, tsv and JSON lines their text, else every line.

    Raises:
        InputError: as `read`, but that a bad line is given back in its place.
    """
    path = Path(path)
    content = _decode(path, encoding)
    if _endings(path) & (_TABLES | _JSON):
        return list(_items(path, content, _Columns(path, text_column, None, labelled=False)))
    lines = content.removesuffix("\n").split("\n") if content else []
    return [Sentence(line.strip(), "", number) for number, line in enumerate(lines, 1)]


def _endings(path: Path) -> set[str]:
    return {ending.lower() for ending in path.suffixes[-2:]}


def _items(path: Path, content: str, columns: "_Columns") -> Iterator[Sentence | BadLine]:
    endings = _endings(path)
    if endings & _TABLES:
        return _table(content, columns, "," if ".csv" in endings else "\t")
    return _json_lines(content, columns) if endings & _JSON else _at_lines(content)


def _checked(item: Sentence | BadLine) -> Sentence | BadLine:
    if isinstance(item, BadLine):
        return item
    item.text, item.label = item.text.strip(), item.label.strip()
    if not item.text:
        return BadLine(item.line, "the sentence is empty", item.label)
    if not item.label:
        return BadLine(item.line, f"no label after {item.text[:40]!r}")
    if "\0" in item.text + item.label:
        return BadLine(item.line, "holds a NUL character", item.label)
    return item


def _decode(path: Path, encoding: str) -> str:
    """The whole file as text, or one sentence that says which line is not in this encoding."""
    try:
        codecs.lookup(encoding)
    except LookupError:
        rule = 'is no known encoding; usual ones are "utf-8", "latin-1", "gb18030", "utf-16"'
        raise InputError("encoding", encoding, rule) from None
    with open_packed(path) as file:
        raw = file.read()
    name = codecs.lookup(encoding).name
    for mark, found in _BOMS.items():
        if raw.startswith(mark) and not name.startswith(found):
            raise InputError("file", str(path), f"begins with the mark of {found}, but was read as {encoding}")
    try:
        content = raw.decode("utf-8-sig" if name == "utf-8" else name)
    except UnicodeDecodeError as error:
        line, byte = raw.count(b"\n", 0, error.start) + 1, raw[error.start]
        guess = _guess(raw, name)
        way = f"name the file's encoding, e.g. {guess}" if guess else "it does not look like text"
        rule = f"line {line} is not {encoding} (byte {byte:#x}); {way}"
        raise InputError("file", str(path), rule) from None
    if name in ("iso8859-1", "cp1252", "iso8859-15") and not raw.isascii() and _is(raw, "utf-8"):
        raise InputError("file", str(path), f"is UTF-8 and would be misread as {encoding}; leave the encoding away")
    return content


def _guess(raw: bytes, name: str) -> str:
    """An encoding in which these bytes are text; none where they hold what no text holds."""
    if _CONTROLS.search(raw):
        return ""
    if name != "gb18030" and _is(raw, "gb18030"):
        beyond = [c for c in raw.decode("gb18030") if ord(c) > 127]
        # Chinese is written in common characters; letters with accents, read as it, seldom give one
        common = [c for c in beyond if "\u4e00" <= c <= "\u9fff" and _can_be(c, "gb2312")]
        if len(common) >= _FEW_HAN and len(common) > len(beyond) / 2:
            return "gb18030"
    return "utf-8" if _is(raw, "utf-8") else "latin-1"


def _can_be(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _is(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


class _Columns:
    """Which of a file's names hold the text and the label; decided once, by the first names seen."""

    def __init__(self, path: Path, text: str | None, label: str | None, labelled: bool = True):
        self.path, self.text, self.label, self.labelled = path, text, label, labelled

    def choose(self, names: Sequence[str]) -> tuple[str, str]:
        """The columns of text and label; of the text twice, where no label is wanted."""
        text = self._one("text_column", self.text, TEXTS, names)
        return text, self._one("label_column", self.label, LABELS, names) if self.labelled else text

    def _one(self, argument: str, given: str | None, usual: Sequence[str], names: Sequence[str]) -> str:
        there = {name.strip().lower(): name for name in names}
        for name in [given] if given is not None else usual:
            if name.strip().lower() in there:
                return there[name.strip().lower()]
        shown = ", ".join(name[:30] for name in names[:12])
        raise InputError(argument, given or "", f"{self.path} has the columns {shown}; name one of them")


def _table(content: str, columns: _Columns, separator: str) -> Iterator[Sentence | BadLine]:
    if separator == ",":
        rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    else:
        rows = csv.reader(io.StringIO(content, newline=""), "excel-tab", quoting=csv.QUOTE_NONE)
    names: list[str] = []
    text = label = 0
    begins = 1
    try:
        for row in rows:
            line, begins = begins, rows.line_num + 1
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            if not names:
                names = row
                text, label = (names.index(name) for name in columns.choose(names))
            elif len(row) != len(names):
                lost = row[label] if label < len(row) < len(names) else ""
                yield BadLine(line, f"{len(row)} fields where the first line names {len(names)}", lost.strip())
            elif len(row[text]) > _LONGEST:
                yield BadLine(line, f"a sentence of {len(row[text])} characters: is a quote never closed?")
            else:
                yield Sentence(row[text], row[label], line)
    except csv.Error as error:
        yield BadLine(begins, f"{error}, so nothing could be read from here on")


def _json_lines(content: str, columns: _Columns) -> Iterator[Sentence | BadLine]:
    chosen: tuple[str, str] | None = None
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            yield BadLine(number, "must be one JSON object")
            continue
        chosen = chosen or columns.choose(list(row))
        text, label = (row.get(name) for name in chosen)
        label = str(label) if isinstance(label, int) and not isinstance(label, bool) else label
        if isinstance(text, str) and isinstance(label, str):
            yield Sentence(text, label, number)
        else:
            wrong = chosen[0] if not isinstance(text, str) else chosen[1]
            yield BadLine(number, f'"{wrong}" must be text', label if isinstance(label, str) else "")


def _at_lines(content: str) -> Iterator[Sentence | BadLine]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        text, at, label = line.rpartition("@")
        if not at:
            yield BadLine(number, f"no @ between text and label in {line.strip()[:40]!r}")
        else:
            yield Sentence(text, label, number)
