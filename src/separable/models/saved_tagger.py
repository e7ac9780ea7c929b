"""A trained tagger as a folder (see word_folder), and tagging with it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from separable.data.conll import Sentence
from separable.data.rows import Batch, Corpus
from separable.data.vectors import Vectors
from separable.data.words import Lexicon, WordTable
from separable.models import word_folder
from separable.models.tagger import Shape, Tagger
from separable.models.word_encoder import WordEncoder
from separable.progress import track

TASK = "tokens"
PREFIX = "encoder."  # before the names of an encoder's weights, which are kept in half precision


class SavedTagger:
    """A network with all that it needs to read words: call `tag` with sentences."""

    def __init__(
        self, network: Tagger, lexicon: Lexicon, words: Vectors, context: str, encoder: WordEncoder | None = None
    ):
        self.network, self.lexicon, self.words, self.context = network.eval(), lexicon, words, context
        self.encoder = encoder.eval() if encoder else None
        self.table = WordTable(lexicon, words)

    def save(self, folder: Path | str, overwrite: bool = False) -> None:
        """Write the folder, whole or not at all."""
        about = {"shape": asdict(self.network.shape), "lexicon": asdict(self.lexicon), "context": self.context}
        state = self.network.state_dict()
        if self.encoder:
            about["encoder"] = self.encoder.describe()
            state |= {PREFIX + name: value.half() for name, value in self.encoder.state_dict().items()}
        word_folder.write(folder, TASK, about, state, self.words, overwrite)

    @classmethod
    def load(cls, folder: Path | str) -> "SavedTagger":
        """Read what `save` wrote.

        Raises:
            InputError: the folder is not a saved tagger, or its parts do not fit each other.
        """
        with word_folder.reading(folder, TASK) as found:
            network = Tagger(Shape(**found.about["shape"]))
            heard = {name: found.state.pop(name) for name in [*found.state] if name.startswith(PREFIX)}
            network.load_state_dict(found.state)
            encoder = WordEncoder.described(found.about["encoder"]) if "encoder" in found.about else None
            if encoder:
                encoder.load_state_dict({name.removeprefix(PREFIX): value for name, value in heard.items()})
            return cls(network, Lexicon(**found.about["lexicon"]), found.words, found.about["context"], encoder)

    @torch.inference_mode()
    def tag(self, sentences: Sequence[Sequence[str]], documents: Sequence[int] | None = None) -> list[list[str]]:
        """BIOES tags of each sentence.

        documents: which sentences belong together, a number each, for a network of context "document"; without it, each
        sentence is read alone.
        """
        found: list[list[str]] = [[] for _ in sentences]
        for numbers, batch in self._batches(sentences, documents, "tagging"):
            for number, row in zip(numbers, self.network.decode(batch).tolist(), strict=True):
                found[number] = [self.network.shape.tags[t] for t in row[: len(sentences[number])]]
        return found

    @torch.no_grad()
    def emissions(self, sentences: Sequence[Sequence[str]], documents: Sequence[int] | None = None) -> list[Tensor]:
        """What the network gives its CRF for each sentence of T words: [T, K] float32. Arguments as for `tag`."""
        found = [torch.zeros(0, len(self.network.shape.tags)) for _ in sentences]
        for numbers, batch in self._batches(sentences, documents, "asking the teacher"):
            for number, row in zip(numbers, self.network(batch), strict=True):
                found[number] = row[: len(sentences[number])].clone()
        return found

    def _batches(
        self, sentences: Sequence[Sequence[str]], documents: Sequence[int] | None, doing: str
    ) -> Iterator[tuple[list[int], Batch]]:
        """Batches of the sentences that have words, and their numbers."""
        whole = self.context == "document" and documents is not None
        known = documents if documents is not None else range(len(sentences))
        given = [Sentence(list(s), ["O"] * len(s), d) for s, d in zip(sentences, known, strict=True)]
        full = [n for n, s in enumerate(given) if s.words]
        if not full:
            return
        corpus = Corpus([given[n] for n in full], self.table, {})
        if self.encoder:
            corpus.encoded = self.encoder.words([given[n].words for n in full])
        for numbers in track(corpus.groups(whole, words=1000), doing):
            yield [full[n] for n in numbers], corpus.batch(numbers, whole)
