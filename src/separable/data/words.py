"""Words as numbers for a tagger: a row for each word type, and what a network may know of it.

A type is a word as written. Of each the network gets: the place of its vector, the place of its trained change, its
characters, its prefixes and suffixes of 1 to 4 characters, and its casing. Tables are learned from training words only;
place 0 is "unknown" (vectors, changes, characters, affixes) everywhere. Numbers and dates share one form, digits as 0.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.data.vectors import Vectors

CHARACTERS = 16  # of a word are read: the first 8 and the last 8 of longer ones
AFFIXES = 8  # prefixes of 1, 2, 3, 4 characters, then suffixes
CASINGS = 8
COUNT, FORM, NAMED, LOWER = -4, -3, -2, -1  # columns of a row of the table
_DIGIT = re.compile(r"\d")


def number_form(word: str) -> str:
    """Lower case with every digit 0: the form under which words share what is learned of them.

    >>> number_form("1996-08-22"), number_form("EU")
    ('0000-00-00', 'eu')
    """
    return _DIGIT.sub("0", word.lower())


def casing(word: str) -> int:
    """0 no letter or digit, 1 number, 2 letters and digits, 3 lower, 4 Capital, 5 UPPER, 6 one capital, 7 miXed."""
    if any(c.isdigit() for c in word):
        return 2 if any(c.isalpha() for c in word) else 1
    letters = [c for c in word if c.isalpha()]
    if not letters:
        return 0
    if all(not c.isupper() for c in letters):
        return 3
    if all(c.isupper() for c in letters):
        return 5 if len(letters) > 1 else 6
    return 4 if word[0].isupper() and not any(c.isupper() for c in word[1:]) else 7


def affixes(word: str) -> list[str]:
    """Prefixes of 1 to 4 characters, then suffixes; "" where the word is shorter."""
    word = _DIGIT.sub("0", word)
    lengths = [1, 2, 3, 4]
    return [word[:n] if len(word) >= n else "" for n in lengths] + [
        word[-n:] if len(word) >= n else "" for n in lengths
    ]


def _names(word: str) -> list[str]:
    """Under which a word may have a vector, the likeliest first; of "Moscow-backed" at last "moscow", then "backed"."""
    parts = sorted(word.split("-"), key=str.islower)
    return [word.lower(), number_form(word), *(part.lower() for part in parts if any(c.isalpha() for c in part))]


@dataclass
class Lexicon:
    """What was seen in training: each list gives its members the places 1, 2, 3, ...; 0 is unknown."""

    changes: list[str]  # number forms with a trained change of their vector
    characters: list[str]
    affixes: list[list[str]]  # one list for each of the AFFIXES
    counts: dict[str, int]  # occurrences of each number form in training

    @classmethod
    def of(cls, words: Iterable[str], change_from: int = 4, affix_from: int = 3) -> "Lexicon":
        """Learn from the words of the training set, with repetitions."""
        seen = Counter(words)
        counts: Counter[str] = Counter()
        characters: Counter[str] = Counter()
        parts: list[Counter[str]] = [Counter() for _ in range(AFFIXES)]
        for word, count in seen.items():
            counts[number_form(word)] += count
            characters.update(dict.fromkeys(word, count))
            for counter, part in zip(parts, affixes(word), strict=True):
                counter[part] += count
        return cls(
            [word for word, count in counts.items() if count >= change_from],
            [c for c, count in characters.items() if count >= 2],
            [[p for p, count in counter.items() if count >= affix_from and p] for counter in parts],
            dict(counts),
        )


class WordTable:
    """The types met so far and their rows; `add` returns the type numbers of words, new ones included.

    Rows are [vector, change, casing, AFFIXES affixes, CHARACTERS characters, COUNT, FORM, NAMED, LOWER], int64, for the
    network but for the last four: occurrences in training, number of the number form, whether the word has a capital,
    whether it has a lower-case letter. Type 0 is the absence of a word. `vectors` [V + 1, D] are frozen, row 0 is zero.
    """

    def __init__(self, lexicon: Lexicon, vectors: Vectors):
        self.vector_places, self.counts = vectors.places, lexicon.counts
        self.vectors = F.pad(vectors.table, (0, 0, 1, 0))
        self.changes = {word: place for place, word in enumerate(lexicon.changes, 1)}
        self.characters = {c: place for place, c in enumerate(lexicon.characters, 2)}  # 0 absent, 1 unknown
        self.parts = [{p: place for place, p in enumerate(parts, 1)} for parts in lexicon.affixes]
        self.types: dict[str, int] = {}
        self.forms: dict[str, int] = {}
        self._rows: list[list[int]] = [[0] * (3 + AFFIXES + CHARACTERS + 4)]
        self._tensor = torch.tensor(self._rows)

    def add(self, words: Iterable[str]) -> list[int]:
        """The number of each word's type; types not met before get the next ones."""
        found = []
        for word in words:
            place = self.types.get(word)
            if place is None:
                place = self.types[word] = len(self._rows)
                self._rows.append(self._row(word))
            found.append(place)
        return found

    def rows(self) -> Tensor:
        """[types, 3 + AFFIXES + CHARACTERS + 4]"""
        if len(self._tensor) < len(self._rows):
            self._tensor = torch.cat([self._tensor, torch.tensor(self._rows[len(self._tensor) :])])
        return self._tensor

    def _row(self, word: str) -> list[int]:
        form = number_form(word)
        vector = next((self.vector_places[name] for name in _names(word) if name in self.vector_places), -1) + 1
        parts = [places.get(part, 0) for places, part in zip(self.parts, affixes(word), strict=True)]
        half = CHARACTERS // 2
        kept = word if len(word) <= CHARACTERS else word[:half] + word[-half:]
        characters = [self.characters.get(c, 1) for c in kept] + [0] * (CHARACTERS - len(kept))
        known = [vector, self.changes.get(form, 0), casing(word), *parts, *characters]
        number = self.forms.setdefault(form, len(self.forms))
        return [*known, self.counts.get(form, 0), number, word != word.lower(), any(c.islower() for c in word)]
