"""Sentences in batches for a classifier: read once, packed without empty places, the same on every run.

`SentenceTable` holds what was learned from the training sentences: the word table and the weights of the bag's
features. `SentenceRows` are the sentences of one file as numbers; `batch` gives any of them as one `SentenceBatch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from separable.data import positions
from separable.data.vectors import Vectors
from separable.data.words import Lexicon, WordTable
from separable.progress import track

WORD_FEATURES = 3  # of the word table's rows are used: vector, change, casing; the pieces stand for the rest


@dataclass
class SentenceBatch:
    """N sentences of P positions together, the longest of L; pieces and bags are lists with their beginnings."""

    places: Tensor  # [P], where in the padded [N * L] each position stands
    size: tuple[int, int]  # N, L
    words: Tensor  # [P, WORD_FEATURES]
    vectors: Tensor  # [P, D], the frozen vector of each position
    flags: Tensor  # [P]
    pieces: Tensor  # [Q]
    piece_starts: Tensor  # [P]
    bag: Tensor  # [B]
    bag_weights: Tensor  # [B]
    bag_starts: Tensor  # [N]
    labels: Tensor  # [N], -1 where unknown

    def to(self, device: torch.device) -> "SentenceBatch":
        """The same batch with its tensors on a device."""
        tensors: dict[str, Any] = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


class SentenceTable:
    """Words and feature weights as the training sentences gave them; `buckets` are the numbers of hashed features."""

    def __init__(self, lexicon: Lexicon, vectors: Vectors, rarity: Sequence[float], piece_buckets: int):
        self.lexicon, self.vectors, self.piece_buckets = lexicon, vectors, piece_buckets
        self.words = WordTable(lexicon, vectors)
        self.rarity = torch.tensor(rarity)  # [bag buckets]

    @classmethod
    def learn(cls, texts: Sequence[str], vectors: Vectors, bag_buckets: int, piece_buckets: int) -> "SentenceTable":
        """Words and weights of features as these training texts give them; `bag_buckets` is 0 without a bag."""
        split = [positions.split(text) for text in texts]
        lexicon = Lexicon.of(word for words in split for word in words)
        if not bag_buckets:  # the network has no bag
            return cls(lexicon, vectors, [], piece_buckets)
        bags = (
            positions.bag(words, positions.flags(words), bag_buckets) for words in track(split, "weighing features")
        )
        return cls(lexicon, vectors, positions.rarity(bags, bag_buckets), piece_buckets)


class SentenceRows:
    """The sentences of one file as numbers."""

    def __init__(self, texts: Sequence[str], labels: Sequence[int], table: SentenceTable):
        self.table, self.labels = table, torch.tensor(labels, dtype=torch.long)
        self.types: list[Tensor] = []  # [length] each
        self.flags: list[Tensor] = []
        self.pieces: list[Tensor] = []
        self.piece_counts: list[Tensor] = []
        self.bags: list[tuple[Tensor, Tensor]] = []
        self._known: dict[str, list[int]] = {}
        for text in track(texts, "reading sentences"):
            self._add(positions.split(text))
        self.lengths = [len(row) for row in self.types]

    def _add(self, words: list[str]) -> None:
        table, flags = self.table, positions.flags(words)
        found = [self._pieces(words, place) for place in range(len(words))]
        self.types.append(torch.tensor(table.words.add(words), dtype=torch.long))
        self.flags.append(torch.tensor(flags, dtype=torch.long))
        self.pieces.append(torch.tensor([p for some in found for p in some], dtype=torch.long))
        self.piece_counts.append(torch.tensor([len(some) for some in found], dtype=torch.long))
        bag = positions.bag(words, flags, len(table.rarity)) if len(table.rarity) else {}
        numbers = torch.tensor(sorted(bag), dtype=torch.long)
        weights = torch.tensor([bag[n] for n in sorted(bag)]) * table.rarity[numbers]
        kept = weights > 0
        numbers, weights = numbers[kept], weights[kept]
        self.bags.append((numbers, weights / weights.norm().clamp(min=1e-6)))

    def _pieces(self, words: list[str], place: int) -> list[int]:
        found = positions.neighbours(words, place)
        if found:
            return [positions.bucket(piece, self.table.piece_buckets) for piece in found]
        word = words[place]
        if word not in self._known:
            numbers = [positions.bucket(piece, self.table.piece_buckets) for piece in positions.pieces(word)]
            self._known[word] = numbers
        return self._known[word]

    def __len__(self) -> int:
        return len(self.types)

    def groups(self, size: int, draw: Random | None = None) -> list[list[int]]:
        """Sentence numbers in batches of about `size`: of like length, in order of length, or shuffled by `draw`."""
        order = list(range(len(self)))
        if draw is None:
            order.sort(key=self.lengths.__getitem__)
            return [order[i : i + size] for i in range(0, len(order), size)]
        order.sort(key=lambda n: self.lengths[n] * draw.uniform(0.7, 1.4))
        groups = [order[i : i + size] for i in range(0, len(order), size)]
        draw.shuffle(groups)
        return groups

    def batch(self, numbers: Sequence[int]) -> SentenceBatch:
        """The sentences `numbers`, in that order."""
        lengths = torch.tensor([self.lengths[n] for n in numbers])
        longest = max(int(lengths.max()), 1)
        there = torch.arange(longest)[None] < lengths[:, None]  # [N, L]
        rows = self.table.words.rows()[torch.cat([self.types[n] for n in numbers])]  # [P, ...]
        counts = torch.cat([self.piece_counts[n] for n in numbers])
        bags = [self.bags[n] for n in numbers]
        sizes = torch.tensor([len(b) for b, _ in bags])
        return SentenceBatch(
            places=there.flatten().nonzero()[:, 0],
            size=(len(numbers), longest),
            words=rows[:, :WORD_FEATURES],
            vectors=self.table.words.vectors[rows[:, 0]],
            flags=torch.cat([self.flags[n] for n in numbers]),
            pieces=torch.cat([self.pieces[n] for n in numbers]),
            piece_starts=counts.cumsum(0) - counts,
            bag=torch.cat([b for b, _ in bags]),
            bag_weights=torch.cat([w for _, w in bags]),
            bag_starts=sizes.cumsum(0) - sizes,
            labels=self.labels[torch.tensor(numbers)],
        )
