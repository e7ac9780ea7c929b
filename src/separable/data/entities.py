"""Entities in a sentence: spans, and the tag schemes that write them down (IOB1, IOB2, BIOES, BMES).

A span is (kind, first, last + 1). Spans are what tags mean; every scheme is read into them and written from them.
Source: Ramshaw and Marcus 1995, arXiv:cmp-lg/9505040; Ratinov and Roth 2009, section 3.2.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Span = tuple[str, int, int]

_BEGINS, _ENDS = "BSU", "ESLU"  # letters that open an entity, letters that close one, over all schemes


def split(tag: str) -> tuple[str, str]:
    """("B", "PER") of "B-PER"; ("O", "") of "O"."""
    letter, _, kind = tag.partition("-")
    return letter, kind


def is_tag(tag: str) -> bool:
    """Whether this is O, or a letter of any scheme, a hyphen and a kind."""
    letter, kind = split(tag)
    return tag == "O" or (letter in tuple("BIMESLU") and bool(kind))


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities that tags of any of the schemes mean; no tag is lost, whatever its neighbours.

    >>> spans(["I-LOC", "O", "B-PER", "I-PER", "B-PER"])
    [('LOC', 0, 1), ('PER', 2, 4), ('PER', 4, 5)]
    >>> spans(["B-ORG", "M-ORG", "E-ORG", "S-LOC"])
    [('ORG', 0, 3), ('LOC', 3, 4)]
    """
    found: list[Span] = []
    first, open_kind = 0, ""  # the entity now open: "" for none
    for place, tag in enumerate([*tags, "O"]):
        letter, kind = split(tag)
        if open_kind and (letter in ("O", *_BEGINS) or kind != open_kind):
            found.append((open_kind, first, place))
            open_kind = ""
        if letter != "O" and not open_kind:
            first, open_kind = place, kind
        if open_kind and letter in tuple(_ENDS):
            found.append((open_kind, first, place + 1))
            open_kind = ""
    return found


def iob2(entities: Iterable[Span], length: int) -> list[str]:
    """B- on each first word, I- on the others."""
    tags = ["O"] * length
    for kind, first, end in entities:
        tags[first:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - first - 1)
    return tags


def bioes(entities: Iterable[Span], length: int) -> list[str]:
    """S- on entities of one word; else B- I- E-."""
    tags = ["O"] * length
    for kind, first, end in entities:
        inner = [f"I-{kind}"] * (end - first - 2)
        tags[first:end] = [f"S-{kind}"] if end - first == 1 else [f"B-{kind}", *inner, f"E-{kind}"]
    return tags


def bioes_tags(kinds: Iterable[str]) -> list[str]:
    """All tags of the scheme: O first, then B I E S of each kind in alphabetical order."""
    return ["O"] + [f"{letter}-{kind}" for kind in sorted(kinds) for letter in "BIES"]


def bioes_rules(tags: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """What the scheme allows: which tags begin a sentence [K], end one [K], and follow which [K, K]; all bool.

    An entity that was begun (B, I) goes on with I or E of its kind; all else comes after it was closed (O, E, S).
    """
    pairs = [split(tag) for tag in tags]
    starts = torch.tensor([letter in ("O", "B", "S") for letter, _ in pairs])
    ends = torch.tensor([letter in ("O", "E", "S") for letter, _ in pairs])
    steps = torch.tensor(
        [
            [(b in ("I", "E") and k == j) if a in ("B", "I") else b in ("O", "B", "S") for b, j in pairs]
            for a, k in pairs
        ]
    )
    return starts, ends, steps
