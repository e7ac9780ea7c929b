"""A convolutional tagger: word features, an encoder of dilated separable convolutions, a memory, a CRF.

Words are a flat list, [M, C]; a depthwise convolution reads them as one line with empty places between sentences, all
else is computed for words alone. The memory lets a word look at its other places in the same document. Emissions are
[S, T, K]; the CRF reads them sentence by sentence.
Source: Strubell et al. 2017, arXiv:1702.02098 (dilated convolutions); Dauphin et al. 2017, arXiv:1612.08083 (gated
blocks); Ma and Hovy 2016, arXiv:1603.01354 (characters and CRF).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from separable.data import entities
from separable.data.rows import FLAGS, GAP, STEP, Batch
from separable.data.words import AFFIXES, CASINGS, CHARACTERS
from separable.errors import InputError
from separable.layers import DepthwiseConv1d, SeparableConv1d
from separable.layers.crf import LinearChainCRF


@dataclass
class Shape:
    """Everything that fixes the parameters of a Tagger."""

    tags: list[str]
    changes: int
    characters: int
    affixes: list[int]
    vector_size: int = 100
    character_size: int = 30
    character_filters: int = 50
    affix_size: int = 12
    casing_size: int = 8
    width: int = 256
    kernel_size: int = 3
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 4)
    memory_after: tuple[int, ...] = ()  # blocks, counted from 1
    memory_size: int = 64
    topic_after: tuple[int, ...] = ()
    encoder_size: int = 0  # of what a pretrained encoder says of each word
    feature_dropout: float = 0.25
    input_dropout: float = 0.25
    block_dropout: float = 0.25
    output_dropout: float = 0.5


class Tagger(nn.Module):
    """See the module. Frozen word vectors, and what an encoder says of the words, come with the batch."""

    def __init__(self, shape: Shape):
        super().__init__()
        if max(shape.dilations, default=1) * (shape.kernel_size // 2) > GAP:
            raise InputError("dilations", shape.dilations, f"must not reach further than {GAP} places to one side")
        self.shape = shape
        self.change = nn.Embedding(shape.changes + 1, shape.vector_size)
        self.characters = CharacterFeatures(shape.characters + 2, shape.character_size, shape.character_filters)
        self.affixes = nn.ModuleList(nn.Embedding(n + 1, shape.affix_size) for n in shape.affixes)
        self.casing = nn.Embedding(CASINGS, shape.casing_size)
        known = shape.vector_size + shape.character_filters + AFFIXES * shape.affix_size + shape.casing_size
        self.join = nn.Linear(known, shape.width)
        self.hear = nn.Linear(shape.encoder_size, shape.width, bias=False) if shape.encoder_size else None
        self.flag = nn.Embedding(FLAGS, shape.width)
        self.blocks = nn.ModuleList(
            SentenceBlock(shape.width, shape.kernel_size, dilation, shape.block_dropout) for dilation in shape.dilations
        )
        self.memories = nn.ModuleDict({str(b): Memory(shape.width, shape.memory_size) for b in shape.memory_after})
        self.topics = nn.ModuleDict({str(b): Topic(shape.width) for b in shape.topic_after})
        self.norm = nn.LayerNorm(shape.width)
        self.emit = nn.Linear(shape.width, len(shape.tags))
        self.crf = LinearChainCRF(*entities.bioes_rules(shape.tags))
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.flag.weight)
        for weight in self.affixes.parameters():
            nn.init.normal_(weight, std=0.3)

    def forward(self, batch: Batch) -> Tensor:
        """Emissions of each sentence: [S, T, K]."""
        known = self.describe(batch.features, batch.vectors)  # [U, width]
        x = F.embedding(batch.words, known) + self.flag(batch.flags)  # [M, width]
        if self.hear is not None:
            x = x + self.hear(batch.encoded)
        x = sentence_dropout(x, self.shape.input_dropout * self.training, batch)
        for number, block in enumerate(self.blocks, 1):
            x = block(x, batch)
            if str(number) in self.memories:
                x = self.memories[str(number)](x, batch.pairs)
            if str(number) in self.topics:
                x = self.topics[str(number)](x, batch.scopes)
        x = sentence_dropout(self.norm(x), self.shape.output_dropout * self.training, batch)
        return self.emit(x)[batch.places.clamp(min=0)]

    def describe(self, features: Tensor, vectors: Tensor) -> Tensor:
        """What is known of each word by itself: [U, ...] -> [U, width]."""
        _, change, casing = features[:, :3].unbind(1)
        parts = features[:, 3 : 3 + AFFIXES].unbind(1)
        joined = torch.cat(
            [
                vectors + self.change(change),
                self.characters(features[:, 3 + AFFIXES : 3 + AFFIXES + CHARACTERS]),
                *(table(part) for table, part in zip(self.affixes, parts, strict=True)),
                self.casing(casing),
            ],
            1,
        )
        if self.training and self.shape.feature_dropout:
            kept = torch.rand_like(joined) >= self.shape.feature_dropout  # three times as fast as F.dropout on a CPU
            joined = joined * (kept / (1 - self.shape.feature_dropout))
        return self.join(joined)

    def loss(self, batch: Batch) -> Tensor:
        """Mean negative log likelihood of the sentences, in nats."""
        return self.crf(self(batch), batch.tags, batch.lengths).mean()

    def decode(self, batch: Batch) -> Tensor:
        """The best allowed tags: [S, T]."""
        return self.crf.decode(self(batch), batch.lengths)


class CharacterFeatures(nn.Module):
    """A separable convolution over a word's characters, its largest response kept: [U, characters] -> [U, filters]."""

    def __init__(self, characters: int, size: int, filters: int):
        super().__init__()
        self.table = nn.Embedding(characters, size, padding_idx=0)
        self.conv = SeparableConv1d(size, filters, 3, padding="same")

    def forward(self, characters: Tensor) -> Tensor:
        x = self.conv(self.table(characters).transpose(1, 2)).transpose(1, 2)  # [U, characters, filters]
        x = x + torch.where(characters > 0, 0.0, -1e4).to(x.dtype)[:, :, None]
        return x.max(1).values.clamp(min=-10)  # a word without any gives -10


class SentenceBlock(nn.Module):
    """x + gated(pointwise(depthwise(norm(x)))): [M, C] -> [M, C]. The depthwise half alone sees empty places."""

    def __init__(self, width: int, kernel_size: int, dilation: int, dropout: float):
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(width), dropout
        self.conv_dw = DepthwiseConv1d(width, width, kernel_size, padding="same", dilation=dilation, bias=False)
        self.conv_pw = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        y = sentence_dropout(self.norm(x), self.dropout * self.training, batch)
        line = int(batch.line[-1]) + 1 + GAP
        y = y.new_zeros(line + -line % STEP, y.shape[1]).index_copy(0, batch.line, y)
        y = self.conv_dw(y.t()[None])[0].t()  # [line, C]; channels stay together in memory
        return x + F.glu(self.conv_pw(y.index_select(0, batch.line)), 1)


class Topic(nn.Module):
    """What all words of a document, or of a sentence read alone, have in common: their mean, mixed, added to each."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)

    def forward(self, x: Tensor, scopes: Tensor) -> Tensor:
        known = self.norm(x)
        count = torch.bincount(scopes)[:, None]
        mean = known.new_zeros(len(count), known.shape[1]).index_add(0, scopes, known) / count
        mixed = F.dropout(self.mix(mean), 0.25, self.training)
        return x + mixed[scopes] * torch.sigmoid(self.gate(known))


class Memory(nn.Module):
    """A word looks at its other places in the document: attention over exactly those, then a gate.

    Places that share no word with another are left as they are. [M, C], pairs [2, P] -> [M, C].
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, size), nn.Linear(width, size)
        self.value = nn.Linear(width, width)
        self.gate = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, pairs: Tensor) -> Tensor:
        asking, which = torch.unique_consecutive(pairs[0], return_inverse=True)  # [U], [P]
        other = torch.searchsorted(asking, pairs[1])  # pairs come both ways round, so every j also asks
        own = x[asking]  # [U, C]
        known = self.norm(own)
        query, key, value = (part(known).float() for part in (self.query, self.key, self.value))  # sums need it
        score = (query[which] * key[other]).sum(1) * key.shape[1] ** -0.5  # [P]
        largest = score.new_full((len(asking),), -1e4).scatter_reduce(0, which, score.detach(), "amax")
        weight = torch.exp(score - largest[which])
        total = torch.zeros_like(largest).index_add(0, which, weight)
        recalled = torch.zeros_like(own).index_add(0, which, (weight / total[which])[:, None] * value[other])
        recalled = recalled * torch.sigmoid(self.gate(torch.cat([known, recalled], 1)))
        return x.index_add(0, asking, recalled.to(x.dtype))


def sentence_dropout(x: Tensor, probability: float, batch: Batch) -> Tensor:
    """Variational dropout: a channel falls away in a whole sentence. Source: Gal and Ghahramani 2016, arXiv:1512.05287.

    [M, C] -> [M, C].
    """
    if probability == 0:
        return x
    kept = torch.rand(len(batch.lengths) + 1, x.shape[1], device=x.device) >= probability  # [S, C]
    return x * (kept / (1 - probability)).index_select(0, batch.sentences)
