"""A trained tagger as a folder (see word_folder), and tagging with it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from separable.data.conll import Sentence
from separable.data.rows import Corpus
from separable.data.vectors import Vectors
from separable.data.words import Lexicon, WordTable
from separable.models import word_folder
from separable.models.tagger import Shape, Tagger
from separable.models.word_encoder import WordEncoder
from separable.progress import track

TASK = "tokens"
ENCODER = "encoder."  # before the names of its weights, which are kept in half precision


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
            state |= {ENCODER + name: value.half() for name, value in self.encoder.state_dict().items()}
        word_folder.write(folder, TASK, about, state, self.words, overwrite)

    @classmethod
    def load(cls, folder: Path | str) -> "SavedTagger":
        """Read what `save` wrote.

        Raises:
            InputError: the folder is not a saved tagger, or its parts do not fit each other.
        """
        with word_folder.reading(folder, TASK) as found:
            network = Tagger(Shape(**found.about["shape"]))
            heard = {name: found.state.pop(name) for name in [*found.state] if name.startswith(ENCODER)}
            network.load_state_dict(found.state)
            encoder = WordEncoder.described(found.about["encoder"]) if "encoder" in found.about else None
            if encoder:
                encoder.load_state_dict({name.removeprefix(ENCODER): value for name, value in heard.items()})
            return cls(network, Lexicon(**found.about["lexicon"]), found.words, found.about["context"], encoder)

    @torch.inference_mode()
    def tag(self, sentences: Sequence[Sequence[str]], documents: Sequence[int] | None = None) -> list[list[str]]:
        """BIOES tags of each sentence.

        documents: which sentences belong together, a number each, for a network of context "document"; without it, each
        sentence is read alone.
        """
        whole = self.context == "document" and documents is not None
        known = documents if documents is not None else range(len(sentences))
        given = [Sentence(list(s), ["O"] * len(s), d) for s, d in zip(sentences, known, strict=True)]
        full = [n for n, s in enumerate(given) if s.words]
        found: list[list[str]] = [[] for _ in given]
        if not full:
            return found
        corpus = Corpus([given[n] for n in full], self.table, {})
        if self.encoder:
            corpus.encoded = self.encoder.words([given[n].words for n in full])
        for numbers in track(corpus.groups(whole, words=1000), "tagging"):
            batch = corpus.batch(numbers, whole)
            for number, row in zip(numbers, self.network.decode(batch).tolist(), strict=True):
                found[full[number]] = [self.network.shape.tags[t] for t in row[: corpus.lengths[number]]]
        return found
