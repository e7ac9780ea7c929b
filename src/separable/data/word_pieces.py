"""Text as numbers of word pieces, as BERT's networks read it: lower case, no accents, longest pieces first.

Words are split at white space, marks and ideographs; each becomes the longest pieces of the vocabulary from its
beginning ("##" before all but the first), or [UNK] where that fails.
Source: Devlin et al. 2019, arXiv:1810.04805; Wu et al. 2016, arXiv:1609.08144, section 4.1.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from separable.errors import InputError

LONGEST_WORD = 100  # characters; a longer word is unknown
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPieces:
    """A vocabulary, a file with a piece a line or the pieces themselves, and cutting text by it.

    Raises:
        InputError: the file cannot be read, or lacks [PAD], [UNK], [CLS] or [SEP].
    """

    def __init__(self, vocabulary: Path | Sequence[str]):
        try:
            lines = vocabulary.read_text(encoding="utf-8").split("\n") if isinstance(vocabulary, Path) else vocabulary
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("vocabulary", str(vocabulary), f"cannot be read: {error}") from None
        self.places = {piece.rstrip("\r"): place for place, piece in enumerate(lines) if piece}
        missing = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if name not in self.places]
        if missing:
            raise InputError("vocabulary", str(vocabulary), f"has no piece {', '.join(missing)}")
        self.pad, self.unknown, self.first, self.last = (self.places[p] for p in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"))
        self._known: dict[str, list[int]] = {}

    def of_text(self, text: str, limit: int) -> list[int]:
        """[CLS], at most `limit` - 2 pieces, [SEP]."""
        pieces = [piece for word in split(text) for piece in self.of_word(word)]
        return [self.first, *pieces[: limit - 2], self.last]

    def of_word(self, word: str) -> list[int]:
        """The pieces of what `split` gave; [UNK] alone where some part is none."""
        if word not in self._known:
            self._known[word] = self._cut(word)
        return self._known[word]

    def _cut(self, word: str) -> list[int]:
        if len(word) > LONGEST_WORD:
            return [self.unknown]
        found, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self.places), None)
            if end is None:
                return [self.unknown]
            found.append(self.places[mark + word[start:end]])
            start = end
        return found


def split(text: str) -> list[str]:
    """Words, marks and ideographs in lower case without accents.

    >>> split("Café costs $9.50 in 北京")
    ['cafe', 'costs', '$', '9', '.', '50', 'in', '北', '京']
    """
    plain = "".join(_apart(character) for character in text)
    lower = unicodedata.normalize("NFD", plain.lower())
    bare = "".join(c for c in lower if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _is_mark(c) else c for c in bare).split()


def _apart(character: str) -> str:
    """White space as a space, an ideograph between spaces, nothing of a control character."""
    code = ord(character)
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if code in (0, 0xFFFD) or unicodedata.category(character)[0] == "C":
        return ""
    return f" {character} " if any(low <= code <= high for low, high in _IDEOGRAPHS) else character


def _is_mark(character: str) -> bool:
    symbol = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    return symbol or unicodedata.category(character).startswith("P")


def padded(rows: Sequence[Sequence[int]], pad: int) -> list[list[int]]:
    """Rows of equal length, `pad` at the ends of the shorter ones."""
    longest = max(map(len, rows))
    return [[*row, *[pad] * (longest - len(row))] for row in rows]
