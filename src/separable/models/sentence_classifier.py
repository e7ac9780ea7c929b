"""A sentence classifier in two halves: separable convolutions in the order of the words, and a linear bag of n-grams.

The first half embeds each position (a frozen word vector, its trained change, casing, number flag and hashed pieces),
runs gated separable convolutions over the sentence and pools by maximum, mean and attention. The second is a linear
classifier over weighted n-grams and pieces, of low rank where there are many classes. Each half gives logits that are
trained by their own loss and by that of their sum, so that neither leans on the other; the sum decides. The second half
can be left out.
Source: Kim 2014, arXiv:1408.5882; Joulin et al. 2016, arXiv:1607.01759 (the bag); Dauphin et al. 2017,
arXiv:1612.08083 (gated blocks).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from separable.data.positions import FLAGS
from separable.data.sentence_rows import SentenceBatch
from separable.data.words import CASINGS
from separable.layers import SeparableConv1d


@dataclass
class Shape:
    """Everything that fixes the parameters of a SentenceClassifier."""

    classes: list[str]
    changes: int
    vector_size: int = 100
    piece_buckets: int = 1 << 14
    piece_size: int = 48
    bag_buckets: int = 1 << 16
    bag_rank: int = 64  # used where there are more classes than that
    bag_scale: float = 20.0
    bag_share: float = 1.0  # of the bag's logits in the sum; 0 for no bag
    width: int = 160
    kernel_size: int = 3
    dilations: tuple[int, ...] = (1, 2, 4)
    heads: int = 4
    word_dropout: float = 0.1
    input_dropout: float = 0.3
    block_dropout: float = 0.2
    output_dropout: float = 0.5
    bag_dropout: float = 0.2


class SentenceClassifier(nn.Module):
    """See the module. Frozen word vectors come with the batch; the network holds what is trained beside them."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.change = nn.Embedding(shape.changes + 1, shape.vector_size)
        self.casing = nn.Embedding(CASINGS, 8)
        self.flag = nn.Embedding(FLAGS, 16)
        self.pieces = nn.EmbeddingBag(shape.piece_buckets, shape.piece_size, mode="mean")
        self.join = nn.Linear(shape.vector_size + 8 + 16 + shape.piece_size, shape.width)
        self.blocks = nn.ModuleList(
            GatedBlock(shape.width, shape.kernel_size, dilation, shape.block_dropout) for dilation in shape.dilations
        )
        self.norm = nn.LayerNorm(shape.width)
        self.attend = nn.Linear(shape.width, shape.heads)
        self.squeeze = nn.Linear((2 + shape.heads) * shape.width, shape.width)
        self.decide = nn.Linear(shape.width, len(shape.classes))
        self.bag = Bag(shape) if shape.bag_share else None
        nn.init.zeros_(self.change.weight)
        nn.init.normal_(self.pieces.weight, std=0.3)

    def forward(self, batch: SentenceBatch) -> tuple[Tensor, list[Tensor], Tensor]:
        """Logits [N, K], the logits of each half where there are two, and the sentence's vector [N, width]."""
        vector = self.describe(batch)
        ordered = self.decide(F.dropout(vector, self.shape.output_dropout, self.training))
        if self.bag is None:
            return ordered, [], vector
        counted = self.bag(batch)
        return ordered + self.shape.bag_share * counted, [ordered, counted], vector

    def describe(self, batch: SentenceBatch) -> Tensor:
        """The sentence as one vector, from its positions in order: [N, width]."""
        n, longest = batch.size
        _, change, casing = batch.words.unbind(1)
        word = batch.vectors + self.change(change)  # [P, D]
        if self.training and self.shape.word_dropout:
            word = word * (torch.rand(len(word), 1, device=word.device) >= self.shape.word_dropout)
        pieces = self.pieces(batch.pieces, batch.piece_starts)
        known = torch.cat([word, pieces, self.casing(casing), self.flag(batch.flags)], 1)
        known = self.join(known)  # [P, width]
        x = known.new_zeros(n * longest, self.shape.width).index_copy(0, batch.places, known)
        present = torch.zeros(n * longest, 1, device=x.device).index_fill(0, batch.places, 1.0).view(n, longest, 1)
        x = row_dropout(x.view(n, longest, -1), self.shape.input_dropout, self.training)
        for block in self.blocks:
            x = block(x, present)
        x = self.norm(x)
        there = present > 0
        share = self.attend(x).masked_fill(~there, -1e4).softmax(1)  # [N, L, heads]
        parts = torch.einsum("nlh,nlc->nhc", share, x).flatten(1)
        mean = (x * present).sum(1) / present.sum(1).clamp(min=1)
        largest = x.masked_fill(~there, -1e4).amax(1).clamp(min=-10)
        pooled = torch.cat([parts, mean, largest], 1)
        return F.gelu(self.squeeze(F.dropout(pooled, self.shape.output_dropout, self.training)))


class Bag(nn.Module):
    """A linear classifier over the weighted features of a sentence, of low rank for many classes: [N, K]."""

    def __init__(self, shape: Shape):
        super().__init__()
        classes = len(shape.classes)
        low = classes > shape.bag_rank
        self.scale, self.dropout = shape.bag_scale, shape.bag_dropout
        self.table = nn.EmbeddingBag(shape.bag_buckets, shape.bag_rank if low else classes, mode="sum")
        self.decide = nn.Linear(shape.bag_rank, classes) if low else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(classes))
        nn.init.normal_(self.table.weight, std=0.02 if low else 0.0)

    def forward(self, batch: SentenceBatch) -> Tensor:
        weights = F.dropout(batch.bag_weights * self.scale, self.dropout, self.training)
        return self.decide(self.table(batch.bag, batch.bag_starts, per_sample_weights=weights)) + self.bias


class GatedBlock(nn.Module):
    """x + gated(separable convolution(norm(x))), zero where no word stands: [N, L, C] -> [N, L, C]."""

    def __init__(self, width: int, kernel_size: int, dilation: int, dropout: float):
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(width), dropout
        self.conv = SeparableConv1d(width, 2 * width, kernel_size, padding="same", dilation=dilation)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        y = row_dropout(self.norm(x), self.dropout, self.training) * present
        y = self.conv(y.transpose(1, 2)).transpose(1, 2)  # [N, L, 2C]; channels stay together in memory
        return x + F.glu(y, 2)


def row_dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Variational dropout: a channel falls away in a whole row. Source: Gal and Ghahramani 2016, arXiv:1512.05287."""
    if not training or probability == 0:
        return x
    kept = torch.rand(x.shape[0], 1, x.shape[2], device=x.device) >= probability
    return x * (kept / (1 - probability))
