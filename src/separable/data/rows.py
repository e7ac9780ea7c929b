"""Tagged sentences as tensors: a corpus in numbers, and batches of it, word after word.

A batch is one flat list of words, M of them; only a convolution sees room between sentences: it reads one long line in
which GAP empty places follow each, so a convolution that reaches no further than GAP reads each as if it stood alone.
"""

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.data.conll import Sentence
from separable.data.words import COUNT, FORM, LOWER, NAMED, WordTable

GAP = 4  # the reach of kernel 3 at dilation 4
SPOTS = 5  # where a sentence stands in its document: 0 not known, 1 first, 2 second, 3 third, 4 later
FLAGS = 4 * SPOTS
STEP = 64  # words of a batch, its types and its line are filled up to a multiple of it: kernels are made for each size
LONGEST_DOCUMENT = 2000  # words; a longer one is read in parts, for a file that marks none may be one of any length
_LARGEST_GROUP = 64  # places of one word that look at each other, at most


@dataclass
class Batch:
    """M words of S sentences, one after another."""

    words: Tensor  # [M] int64, rows of `features`
    features: Tensor  # [U, 3 + AFFIXES + CHARACTERS + 4] int64, see data.words.WordTable
    vectors: Tensor  # [U, D] float32, the frozen vector of each, zero where there is none
    encoded: Tensor  # [M, E] float32, what a pretrained encoder says of each word; E = 0 without one
    flags: Tensor  # [M] int64 < FLAGS: 1 first word, + 2 in a sentence without a lower-case letter, + 4 * spot
    sentences: Tensor  # [M] int64, the sentence of each word, ascending
    scopes: Tensor  # [M] int64, words with the same number may be seen together: document, or sentence read alone
    line: Tensor  # [M] int64, ascending: where each word stands in the line that a convolution reads
    places: Tensor  # [S, T] int64, the number of each word of each sentence; -1 beyond its length
    lengths: Tensor  # [S] int64
    pairs: Tensor  # [2, P] int64, words (i, j): j is another place of i's word in its document, sorted by i
    tags: Tensor  # [S, T] int64; 0 where unknown

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class Corpus:
    """Sentences in numbers, one flat tensor a property; `table` grows by their words.

    A document beyond LONGEST_DOCUMENT words becomes several, of consecutive sentences.
    """

    def __init__(self, sentences: Sequence[Sentence], table: WordTable, tag_places: dict[str, int]):
        self.table = table
        self.sentences = sentences
        self.types = torch.tensor(table.add(word for s in sentences for word in s.words))  # [M]
        self.forms, self.named = (table.rows()[self.types, column] for column in (FORM, NAMED))
        self.tags = torch.tensor([tag_places.get(tag, 0) for s in sentences for tag in s.tags])
        self.lengths = [len(s.words) for s in sentences]
        self.starts = [0, *itertools.accumulate(self.lengths)]
        self.documents = [s.document for s in sentences]
        self.spots = [0] * len(sentences)
        for document in self.by_document():
            for place, number in enumerate(document, 1):
                self.spots[number] = min(place, SPOTS - 1)
        self.documents = parts_of(self.documents, self.lengths)
        own, earlier = torch.bincount(self.forms)[self.forms], table.rows()[self.types, COUNT]
        self.counts = torch.maximum(own, earlier)  # [M], how often training saw the number form: here, or before
        self.flags = self._flags()
        self.encoded = torch.zeros(len(self.types), 0)  # [M, E], set by who has an encoder

    @functools.cached_property
    def loud(self) -> Tensor:
        """[M]: the types of the words in capitals."""
        return torch.tensor(self.table.add(word.upper() for s in self.sentences for word in s.words))

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
        """Sentence numbers of each batch, about `words` words: whole documents, or single sentences.

        With `draw` the order is drawn; without, sentences of like length stand together, which is quicker.
        """
        units = self.by_document() if whole_documents else [[n] for n in range(len(self.lengths))]
        if draw:
            draw.shuffle(units)
        elif not whole_documents:
            units.sort(key=lambda unit: self.lengths[unit[0]])
        found: list[list[int]] = [[]]
        size = 0
        for unit in units:
            more = sum(self.lengths[n] for n in unit)
            if found[-1] and size + more / 2 > words:
                found.append([])
                size = 0
            found[-1].extend(unit)
            size += more
        return found

    def batch(
        self,
        numbers: Sequence[int],
        whole_documents: bool = False,
        forget: float = 0.0,
        shout: float = 0.0,
        alone: float = 0.0,
    ) -> Batch:
        """The sentences `numbers`, in that order.

        Args:
            whole_documents: with the pairs of the documents' memory; else each sentence is read alone.
            forget: drop words to unknown, a word of count c with probability forget / (forget + c), everywhere in its
                document at once.
            shout: the share of sentences to turn into capitals, as headings are.
            alone: the share of documents whose sentences are read alone after all.
        """
        lengths = torch.tensor([self.lengths[n] for n in numbers])
        count, longest = len(lengths), int(lengths.max())
        within = torch.arange(longest).expand(count, longest)  # [S, T]
        inside = within < lengths[:, None]
        sentences = torch.arange(count).repeat_interleave(lengths)  # [M]
        starts = torch.tensor([self.starts[n] for n in numbers])
        flat = (starts[:, None] + within)[inside]  # [M]
        kinds, document = torch.unique(torch.tensor([self.documents[n] for n in numbers]), return_inverse=True)  # [S]
        joined = (torch.rand(len(kinds)) >= alone)[document] & whole_documents  # [S]
        loud = (torch.rand(count) < shout)[sentences]  # [M]
        types = torch.where(loud, self.loud[flat], self.types[flat]) if shout else self.types[flat]
        spoken = document[sentences] * (int(self.forms.max()) + 1) + self.forms[flat]  # [M], a word in its document
        words, features = self._features(types, spoken, self.counts[flat], forget)
        scopes = torch.where(joined, document, len(kinds) + torch.arange(count))  # [S]
        spots = torch.tensor([self.spots[n] for n in numbers]) * joined  # [S]
        named = ((self.named[flat] > 0) | loud) & joined[sentences]
        scopes = torch.unique(scopes, return_inverse=True)[1]
        features = F.pad(features, (0, 0, 0, -len(features) % STEP))
        more = 0, -len(flat) % STEP  # words of one more sentence, which no place leads to
        return Batch(
            words=F.pad(words, more),
            features=features,
            vectors=self.table.vectors[features[:, 0]],
            encoded=F.pad(self.encoded[flat].float(), (0, 0, *more)),
            flags=F.pad((self.flags[flat] | 2 * loud) + 4 * spots[sentences], more),
            sentences=F.pad(sentences, more, value=count),
            scopes=F.pad(scopes[sentences], more, value=int(scopes.max()) + 1),
            line=torch.arange(len(flat) + more[1]) + GAP * F.pad(sentences, more, value=count),
            places=torch.full((count, longest), -1).masked_scatter(inside, torch.arange(len(flat))),
            lengths=lengths,
            pairs=other_places(spoken, named) if whole_documents else torch.zeros(2, 0, dtype=torch.long),
            tags=torch.zeros(count, longest, dtype=torch.long).masked_scatter(inside, self.tags[flat]),
        )

    def _features(self, types: Tensor, spoken: Tensor, counts: Tensor, forget: float) -> tuple[Tensor, Tensor]:
        """Of each word its row of features [M], and the rows [U, ...]; see `batch` for counts and forget."""
        table = self.table.rows()
        lost = torch.zeros_like(types, dtype=torch.bool)
        if forget:
            distinct, which = torch.unique(spoken, return_inverse=True)
            lost = torch.rand(len(distinct))[which] * (forget + counts) < forget
        distinct, which = torch.unique(2 * types + lost, return_inverse=True)
        features = table[distinct // 2]
        features[distinct % 2 > 0, :2] = 0
        return which, features


def parts_of(documents: Sequence[int], lengths: Sequence[int], longest: int = LONGEST_DOCUMENT) -> list[int]:
    """New numbers for the documents of sentences, such that none has more than `longest` words, or one sentence.

    >>> parts_of([7, 7, 7, 8], [3, 2, 4, 9], longest=5)
    [0, 0, 1, 2]
    """
    numbers: dict[tuple[int, int], int] = {}  # of each document and part
    now: dict[int, tuple[int, int]] = {}  # the part of each document, and the words in it
    found = []
    for document, length in zip(documents, lengths, strict=True):
        part, words = now.get(document, (0, 0))
        if words and words + length > longest:
            part, words = part + 1, 0
        now[document] = part, words + length
        found.append(numbers.setdefault((document, part), len(numbers)))
    return found


def other_places(spoken: Tensor, named: Tensor) -> Tensor:
    """Pairs of places of one word in one document, of words that are somewhere in it written with a capital: [2, P].

    spoken: [M] the word in its document; named: [M] bool.
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
    pairs = order[torch.stack([i, j])[:, i != j]]
    return pairs[:, torch.argsort(pairs[0], stable=True)]
