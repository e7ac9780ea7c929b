"""A sentence as positions and hashed features: what a sentence classifier reads, in any language.

A position is a word, a number, a mark, or one Chinese, Japanese or Korean character, so that no segmenter is needed.
Two readings of a sentence come out. In order: the type of each position, a flag for numbers that says how a number
stands to the one it is compared with, and its pieces (character n-grams of a word; of a character, itself with each
neighbour). As a bag: n-grams of 1 to 3 positions and the pieces of words, weighted by rarity to a vector of length 1.
N-grams are hashed (CRC-32), so no list of them is kept. Source: Bojanowski et al. 2017, arXiv:1607.04606 (pieces of
words); Weinberger et al. 2009, arXiv:0902.2206 (hashing); Salton and Buckley 1988 (weights).
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

IDEOGRAPH = r"\u2e80-\u2fdf\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_LETTERS = rf"[^\W\d_{IDEOGRAPH}]"
_POSITION = re.compile(
    rf"[{IDEOGRAPH}]|\d+(?:[.,:]\d+)*|{_LETTERS}+?(?=n't\b)|n't\b|'{_LETTERS}{{1,2}}\b|{_LETTERS}+|\S"
)
_CHARACTER = re.compile(rf"[{IDEOGRAPH}]")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?$")
PIECES = 3, 5  # characters of the shortest and longest pieces of a word, its ends marked
LONGEST = 3  # positions of the longest n-gram
FLAGS = 6  # no number, alone, larger than the next, smaller than it, larger than the one before, smaller than it
MARKS = ("", "", ">", "<", ">>", "<<")


def split(text: str) -> list[str]:
    """The positions of a text.

    >>> split("Profit doesn't rise: EUR13.1m."), split("净利增12%")
    (['Profit', 'does', "n't", 'rise', ':', 'EUR', '13.1', 'm', '.'], ['净', '利', '增', '12', '%'])
    """
    return _POSITION.findall(text)


def flags(positions: Sequence[str]) -> list[int]:
    """For each position whether it is a number, and how it stands to the next or the last number of the same unit.

    >>> flags(split("EUR 13.1 mn from EUR 8.7 mn in 2008"))
    [0, 2, 0, 0, 0, 5, 0, 0, 1]
    """
    found = [0] * len(positions)
    last: dict[str, tuple[int, float]] = {}
    for place, word in enumerate(positions):
        if not word[0].isdecimal():
            continue
        found[place] = 1
        size = _size(word)
        unit = positions[place + 1].lower() if place + 1 < len(positions) else ""
        is_year = word.isdecimal() and len(word) == 4 and word[:2] in ("19", "20")
        if size is None or is_year or not (unit.isalpha() or unit == "%"):
            continue
        if unit in last and size != last[unit][1]:
            earlier, other = last[unit]
            found[place] = 4 if size > other else 5
            if found[earlier] == 1:
                found[earlier] = 3 if size > other else 2
        last[unit] = place, size
    return found


def _size(word: str) -> float | None:
    text = word.replace(",", "") if _THOUSANDS.match(word) else word.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return None


def is_ideograph(character: str) -> bool:
    """Whether a character is a position by itself."""
    return bool(_CHARACTER.match(character))


def form(word: str, flag: int) -> str:
    """How a position is written in n-grams: lower case, every number "0" with its mark."""
    return "0" + MARKS[flag] if flag else word.lower()


def pieces(word: str) -> list[str]:
    """Character n-grams of a word between its marked ends; none of a character that stands alone.

    >>> pieces("net")
    ['<ne', 'net', 'et>', '<net', 'net>', '<net>']
    """
    if len(word) < 2 or word[0].isdecimal():
        return []
    marked = f"<{word.lower()}>"
    return [marked[i : i + n] for n in range(PIECES[0], PIECES[1] + 1) for i in range(len(marked) - n + 1)]


def neighbours(positions: Sequence[str], place: int) -> list[str]:
    """The two bigrams of a position that is an ideograph; none of other positions."""
    if not is_ideograph(positions[place]):
        return []
    before = positions[place - 1] if place else "<"
    after = positions[place + 1] if place + 1 < len(positions) else ">"
    return [f"-{before}{positions[place]}", f"+{positions[place]}{after}"]


def ngrams(forms: Sequence[str]) -> list[str]:
    """N-grams of 1 to LONGEST positions."""
    return [" ".join(forms[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(forms) - n + 1)]


def bucket(feature: str, buckets: int) -> int:
    """The number of a feature, the same on every machine: 1 ... buckets - 1; 0 is kept for none."""
    return 1 + zlib.crc32(feature.encode("utf-8")) % (buckets - 1)


def bag(positions: Sequence[str], flag: Sequence[int], buckets: int) -> dict[int, float]:
    """Feature numbers with 1 + log(count): of n-grams of positions and of the pieces of words."""
    forms = [form(word, f) for word, f in zip(positions, flag, strict=True)]
    counts = Counter(bucket(gram, buckets) for gram in ngrams(forms))
    counts.update(bucket("#" + piece, buckets) for word in positions for piece in pieces(word))
    return {number: 1 + math.log(count) for number, count in counts.items()}


def rarity(bags: Iterable[dict[int, float]], buckets: int) -> list[float]:
    """Smoothed inverse document frequency of each feature; 0 for those of fewer than two sentences."""
    seen: Counter[int] = Counter()
    total = 0
    for sentence in bags:
        seen.update(sentence.keys())
        total += 1
    return [1 + math.log((1 + total) / (1 + seen[n])) if seen[n] > 1 else 0.0 for n in range(buckets)]
