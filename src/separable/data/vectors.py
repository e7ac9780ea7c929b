"""Word vectors from a file: the usual text format or safetensors.

Text: a word and its numbers a line, separated by spaces, perhaps after a first line "count size" (word2vec); .xz and
.gz are unpacked as read. Safetensors: `vectors` [V, D] in any float type, and `words`, uint8, the words in UTF-8 with a
line feed between two. Source of the text format: Pennington, Socher and Manning 2014, "GloVe".
"""

import gzip
import lzma
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from separable.errors import InputError
from separable.progress import track


@dataclass
class Vectors:
    """`table` [V, D] float32; `places[word]` is the row of a word."""

    places: dict[str, int]
    table: Tensor


def read(path: Path | str) -> Vectors:
    """Read vectors; of a word that stands twice the first row counts.

    Raises:
        InputError: the file is missing, or is not what its name says; a bad line is named with its number.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("vectors", str(path), "is not a file")
    words, table = _safetensors(path) if path.suffix == ".safetensors" else _text(path)
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places.setdefault(word, place)
    return Vectors(places, table)


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


def _text(path: Path) -> tuple[list[str], Tensor]:
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    words: list[str] = []
    rows: list[Tensor] = []
    with opener(path, "rt", encoding="utf-8", errors="strict") as file:  # type: ignore[operator]
        for number, line in enumerate(track(file, "reading vectors"), 1):
            word, *numbers = line.rstrip().split(" ")
            if number == 1 and len(numbers) == 1 and word.isdigit():
                continue  # word2vec's "count size"
            try:
                row = torch.tensor([float(n) for n in numbers])
            except ValueError:
                raise InputError("vectors", str(path), f"line {number} is not a word and its numbers") from None
            if not numbers or (rows and len(row) != len(rows[0])):
                size = f" as before ({len(rows[0])})" if rows else ""
                raise InputError("vectors", str(path), f"line {number} has {len(row)} numbers, not as many{size}")
            words.append(word)
            rows.append(row)
    if not rows:
        raise InputError("vectors", str(path), "holds no vectors")
    return words, torch.stack(rows)


def none(size: int = 100) -> Vectors:
    """No vectors: every word is learned from the training set alone."""
    return Vectors({}, torch.zeros(0, size))
