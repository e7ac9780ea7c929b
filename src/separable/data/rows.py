"""Tagged sentences as tensors: a corpus in numbers, and batches of it packed in rows.

A row holds one sentence or, where documents are packed, several with GAP empty places between, so that a convolution
that reaches no further than GAP reads each as if it stood alone.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from separable.data.conll import Sentence
from separable.data.words import COUNT, FORM, LOWER, NAMED, WordTable

GAP = 4  # the reach of kernel 3 at dilation 4
WIDTH = 64  # of a row of packed sentences, unless one is longer
_LARGEST_GROUP = 64  # places of one word that look at each other, at most


@dataclass
class Batch:
    """Sentences in rows. Places count through the rows, n*L + l; -1 fills where a sentence is shorter."""

    words: Tensor  # [N, L] int64, rows of `features`; row 0 stands where no word does
    features: Tensor  # [U, 3 + AFFIXES + CHARACTERS + 4] int64, see data.words.WordTable
    vectors: Tensor  # [U, D] float32, the frozen vector of each, zero where there is none
    flags: Tensor  # [N, L] int64: 1 first of its sentence, 2 sentence without a lower-case letter, 3 both, 0 neither
    places: Tensor  # [S, T] int64, the place of each word of each sentence
    lengths: Tensor  # [S] int64
    pairs: Tensor  # [2, P] int64, places (i, j): j is another place of i's word in the document, sorted by i
    tags: Tensor  # [S, T] int64; 0 where unknown

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class Corpus:
    """Sentences in numbers, one flat tensor a property; `table` grows by their words."""

    def __init__(self, sentences: Sequence[Sentence], table: WordTable, tag_places: dict[str, int]):
        self.table = table
        self.sentences = sentences
        self.types = torch.tensor(table.add(word for s in sentences for word in s.words))  # [M]
        self.forms, self.named = (table.rows()[self.types, column] for column in (FORM, NAMED))
        self.tags = torch.tensor([tag_places.get(tag, 0) for s in sentences for tag in s.tags])
        self.lengths = [len(s.words) for s in sentences]
        self.starts = [0, *itertools.accumulate(self.lengths)]
        self.documents = [s.document for s in sentences]
        self.flags = self._flags()

    def _flags(self) -> Tensor:
        """[M]: 1 first of its sentence, 2 in a sentence without a lower-case letter (a heading, numbers), 3 both."""
        lengths = torch.tensor(self.lengths)
        lower = torch.cat([torch.zeros(1, dtype=torch.long), self.table.rows()[self.types, LOWER].cumsum(0)])
        starts = torch.tensor(self.starts)
        loud = (lower[starts[1:]] == lower[starts[:-1]]).long()  # [S]
        flags = 2 * loud.repeat_interleave(lengths)
        flags[starts[:-1]] += 1
        return flags

    def by_document(self) -> list[list[int]]:
        """Sentence numbers of each document, in order."""
        found: dict[int, list[int]] = {}
        for number, document in enumerate(self.documents):
            found.setdefault(document, []).append(number)
        return list(found.values())

    def groups(self, whole_documents: bool, words: int, draw: random.Random | None = None) -> list[list[int]]:
        """Sentence numbers of each batch, about `words` words: whole documents, or sentences of like length.

        With `draw` the order is drawn: of documents anew, of sentences among those of like length, of batches.
        """
        found: list[list[int]] = [[]]
        if whole_documents:
            documents = self.by_document()
            if draw:
                draw.shuffle(documents)
            for document in documents:
                if sum(self.lengths[n] for n in found[-1]) >= words - 100:  # another would be too many more
                    found.append([])
                found[-1].extend(document)
        else:
            order = [length + (draw.random() * 3 if draw else 0) for length in self.lengths]
            longest = 0
            for n in sorted(range(len(order)), key=order.__getitem__):
                longest = max(longest, self.lengths[n])
                if found[-1] and (len(found[-1]) + 1) * longest > words:
                    found.append([])
                    longest = self.lengths[n]
                found[-1].append(n)
        if draw:
            draw.shuffle(found)
        return found

    def batch(
        self,
        numbers: Sequence[int],
        whole_documents: bool = False,
        forget: float = 0.0,
        unlearn: float = 0.0,
    ) -> Batch:
        """The sentences `numbers`, in that order, each in a row of its own.

        whole_documents: several to a row of WIDTH, with the pairs of the documents' memory. forget: drop words to
        unknown, a word of count c with probability forget / (forget + c), everywhere in its document at once. unlearn:
        likewise drop only the trained change of its vector, so that it looks like a word that training never saw.
        """
        lengths = torch.tensor([self.lengths[n] for n in numbers])
        count, longest = len(lengths), int(lengths.max())
        rows, wide, at = pack([self.lengths[n] for n in numbers], WIDTH if whole_documents else 0)
        within = torch.arange(longest).expand(count, longest)  # [S, T]
        inside = within < lengths[:, None]
        flat = (torch.tensor([self.starts[n] for n in numbers])[:, None] + within)[inside]  # [M]
        places = torch.where(inside, torch.tensor(at)[:, None] + within, -1)
        placed = places[inside]  # [M]
        document = torch.tensor([self.documents[n] for n in numbers])[:, None].expand(count, longest)[inside]
        spoken = document * (int(self.forms.max()) + 1) + self.forms[flat]  # [M], a word in its document
        words, features = self._features(self.types[flat], spoken, forget, unlearn)
        return Batch(
            words=torch.zeros(rows * wide, dtype=torch.long).index_copy(0, placed, words).view(rows, wide),
            features=features,
            vectors=self.table.vectors[features[:, 0]],
            flags=torch.zeros(rows * wide, dtype=torch.long).index_copy(0, placed, self.flags[flat]).view(rows, wide),
            places=places,
            lengths=lengths,
            pairs=other_places(spoken, self.named[flat] > 0, placed)
            if whole_documents
            else torch.zeros(2, 0, dtype=torch.long),
            tags=torch.zeros(count, longest, dtype=torch.long).masked_scatter(inside, self.tags[flat]),
        )

    def _features(self, types: Tensor, spoken: Tensor, forget: float, unlearn: float) -> tuple[Tensor, Tensor]:
        """Of each word its row of features [M], and the rows [U, ...]; row 0 is the absence of a word."""
        table = self.table.rows()
        count = table[types, COUNT]
        lost = torch.zeros_like(types)  # 1: the change, 2: vector and change
        if forget or unlearn:
            distinct, which = torch.unique(spoken, return_inverse=True)
            draw = torch.rand(2, len(distinct))[:, which]
            lost += (draw[0] * (unlearn + count) < unlearn) + 2 * (draw[1] * (forget + count) < forget)
        distinct, which = torch.unique(4 * types + lost, return_inverse=True)
        features = table[distinct // 4]
        features[distinct % 4 > 1, 0] = 0
        features[distinct % 4 > 0, 1] = 0
        return which + 1, torch.cat([table[:1], features])


def pack(lengths: Sequence[int], width: int = 0) -> tuple[int, int, list[int]]:
    """Rows for sentences of these lengths, longest first, each into the first row that has room.

    Returns how many rows, how wide, and where each sentence begins (row * width + place).

    >>> pack([3, 5, 2, 2], width=12)
    (2, 12, [9, 0, 12, 18])
    """
    wide, starts = max(max(lengths), width), [0] * len(lengths)
    free: list[int] = []  # where the empty end of each row begins
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        row = next((r for r, used in enumerate(free) if used + lengths[number] <= wide), len(free))
        if row == len(free):
            free.append(0)
        starts[number] = row * wide + free[row]
        free[row] += lengths[number] + GAP
    return len(free), wide, starts


def other_places(spoken: Tensor, named: Tensor, placed: Tensor) -> Tensor:
    """Pairs of places of one word in one document, of words that are somewhere in it written with a capital: [2, P].

    spoken: [M] the word in its document; named: [M] bool; placed: [M] where it stands.
    """
    distinct, which = torch.unique(spoken, return_inverse=True)
    capital = torch.zeros(len(distinct), dtype=torch.bool).index_put((which[named],), torch.tensor(True))
    chosen = capital[which].nonzero()[:, 0]
    order = chosen[torch.argsort(which[chosen], stable=True)]
    _, size = torch.unique_consecutive(which[order], return_counts=True)
    first = (size.cumsum(0) - size).repeat_interleave(size)  # [m], where each word's group begins
    rank = torch.arange(len(order)) - first
    chunk = rank // _LARGEST_GROUP
    _, size = torch.unique_consecutive(torch.stack([which[order], chunk]), dim=1, return_counts=True)
    first, size = (size.cumsum(0) - size).repeat_interleave(size), size.repeat_interleave(size)
    i = torch.arange(len(order)).repeat_interleave(size)
    j = first[i] + torch.arange(len(i)) - (size.cumsum(0) - size)[i]
    pairs = placed[order[torch.stack([i, j])[:, i != j]]]
    return pairs[:, torch.argsort(pairs[0], stable=True)]
