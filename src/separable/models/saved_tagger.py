"""A trained tagger as a folder: weights, vectors and one JSON; and tagging with it.

Holds network.json (shape, lexicon, context), weights.safetensors and vectors.safetensors; no pickle is ever read.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from separable import atomic
from separable.data import vectors
from separable.data.conll import Sentence
from separable.data.rows import Corpus
from separable.data.vectors import Vectors
from separable.data.words import Lexicon, WordTable
from separable.errors import InputError
from separable.models.tagger import Shape, Tagger
from separable.progress import track


class SavedTagger:
    """A network with all that it needs to read words: call `tag` with sentences."""

    def __init__(self, network: Tagger, lexicon: Lexicon, words: Vectors, context: str):
        self.network, self.lexicon, self.words, self.context = network.eval(), lexicon, words, context
        self.table = WordTable(lexicon, words)

    def save(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write the folder, whole or not at all."""
        with atomic.folder_beside(folder, overwrite=overwrite, mark="network.json") as beside:
            save_file(self.network.state_dict(), beside / "weights.safetensors")
            half = Vectors(self.words.places, self.words.table.half())
            vectors.save(half, beside / "vectors.safetensors")
            about = {"shape": asdict(self.network.shape), "lexicon": asdict(self.lexicon), "context": self.context}
            (beside / "network.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> "SavedTagger":
        """Read what `save` wrote.

        Raises:
            InputError: the folder is not a saved tagger, or its parts do not fit each other.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "network.json").read_text(encoding="utf-8"))
            shape, lexicon = Shape(**about["shape"]), Lexicon(**about["lexicon"])
            network = Tagger(shape)
            network.load_state_dict(load_file(folder / "weights.safetensors"))
            words = vectors.read(folder / "vectors.safetensors")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError("folder", str(folder), f"is not a saved tagger: {reason}") from None
        return cls(network, lexicon, words, about["context"])

    @torch.inference_mode()
    def tag(self, sentences: Sequence[Sequence[str]], documents: Sequence[int] | None = None) -> list[list[str]]:
        """BIOES tags of each sentence; `documents` says which belong together (all, where it is not given)."""
        known = documents or [0] * len(sentences)
        given = [Sentence(list(s), ["O"] * len(s), d) for s, d in zip(sentences, known, strict=True)]
        full = [n for n, s in enumerate(given) if s.words]
        found: list[list[str]] = [[] for _ in given]
        if not full:
            return found
        corpus = Corpus([given[n] for n in full], self.table, {})
        whole = self.context == "document"
        for numbers in track(corpus.groups(whole, words=1000), "tagging"):
            batch = corpus.batch(numbers, whole)
            for number, row in zip(numbers, self.network.decode(batch).tolist(), strict=True):
                found[full[number]] = [self.network.shape.tags[t] for t in row[: corpus.lengths[number]]]
        return found
