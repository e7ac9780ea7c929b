"""Word vectors from a file: the usual text format or safetensors.

Text: a word and its numbers a line, separated by spaces, perhaps after a first line "count size" (word2vec); .xz and
.gz are unpacked as read. As many numbers belong to a word as most of the first lines end in; what stands before them is
the word, spaces included. A line of another kind is named with its number, counted and left out. Safetensors: `vectors`
[V, D] in any float type, and `words`, uint8, the words in UTF-8 with a line feed between two.
Source of the text format: Pennington, Socher and Manning 2014, "GloVe".
"""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from separable.data.packed import lines_of, open_packed
from separable.errors import InputError
from separable.progress import say, track

_JUDGED = 100  # lines that say how many numbers a word has


@dataclass
class Vectors:
    """`table` [V, D] float32; `places[word]` is the row of a word; `skipped` names the lines that were left out."""

    places: dict[str, int]
    table: Tensor
    skipped: list[str] = field(default_factory=list)


def read(path: Path | str) -> Vectors:
    """Read vectors; of a word that stands twice the first row counts.

    Raises:
        InputError: the file is missing, is not UTF-8, is packed and damaged, or most of its lines are no vectors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("vectors", str(path), "is not a file")
    words, table, skipped = (*_safetensors(path), []) if path.suffix == ".safetensors" else _text(path)
    if skipped:
        say(f"{path}: {len(skipped)} lines left out, the first: {skipped[0]}")
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places.setdefault(word, place)
    return Vectors(places, table, skipped)


def save(vectors: Vectors, path: Path | str) -> None:
    """Write vectors as safetensors, in the type of the table: float16 halves the file."""
    words = sorted(vectors.places, key=vectors.places.__getitem__)
    rows = vectors.table[torch.tensor([vectors.places[word] for word in words], dtype=torch.long)]
    encoded = torch.tensor(list("\n".join(words).encode()), dtype=torch.uint8)
    save_file({"vectors": rows.contiguous(), "words": encoded}, path)


def _safetensors(path: Path) -> tuple[list[str], Tensor]:
    try:
        tensors = load_file(path)
        table, text = tensors["vectors"].float(), bytes(tensors["words"].tolist()).decode()
    except (SafetensorError, KeyError, UnicodeDecodeError) as error:
        rule = f'must be safetensors with "vectors" [V, D] and "words" in UTF-8 ({error})'
        raise InputError("vectors", str(path), rule) from None
    words = text.split("\n") if text else []
    if table.dim() != 2 or len(table) != len(words):
        raise InputError("vectors", str(path), f"has {len(words)} words for vectors of shape {list(table.shape)}")
    return words, table


def _text(path: Path) -> tuple[list[str], Tensor, list[str]]:
    words: list[str] = []
    rows: list[Tensor] = []
    skipped: list[str] = []
    with open_packed(path, "vectors") as file:
        lines = lines_of(file, path, "vectors")
        first = [*itertools.islice(lines, _JUDGED)]
        size = _size([line for _, line in first])
        for number, line in track(itertools.chain(first, lines), "reading vectors"):
            fields = line.rstrip(" \t").split(" ")
            row = _numbers(fields[-size:]) if len(fields) > size else None
            if number == 1 and _is_header(fields, size):
                continue
            if row is not None:
                words.append(" ".join(fields[:-size]))
                rows.append(row)
            else:
                skipped.append(f"line {number} is not a word and its {size} numbers: {line[:40]!r}")
    if len(skipped) > len(rows):
        rule = f"holds no vectors: {skipped[0]}; {len(skipped)} of {len(skipped) + len(rows)} lines are bad"
        raise InputError("vectors", str(path), rule)
    if not rows:
        raise InputError("vectors", str(path), "holds no vectors")
    return words, torch.stack(rows), skipped


def _size(lines: list[str]) -> int:
    """How many numbers most of these lines end in; a word may itself be a number, so the first field is none."""
    counts: Counter[int] = Counter()
    for line in lines if len(lines) == 1 else lines[1:]:  # the first may be word2vec's
        fields = line.rstrip(" \t").split(" ")[1:]
        numbers = [*itertools.takewhile(lambda field: _numbers([field]) is not None, reversed(fields))]
        counts[len(numbers)] += bool(numbers)
    return max(counts, key=lambda size: counts[size], default=1) or 1


def _is_header(fields: list[str], size: int) -> bool:
    """Whether this is word2vec's first line, "count size"."""
    return len(fields) == 2 and fields[0].isdigit() and fields[1] == str(size)


def _numbers(fields: list[str]) -> Tensor | None:
    """The fields as numbers [D], all of them finite; None where they are not."""
    try:
        row = torch.tensor([float(field) for field in fields])
    except ValueError:
        return None
    return row if row.isfinite().all() else None


def none(size: int = 100) -> Vectors:
    """No vectors: every word is learned from the training set alone."""
    return Vectors({}, torch.zeros(0, size))
