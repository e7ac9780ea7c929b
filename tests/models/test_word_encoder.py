"""What an encoder says of words: the mean over their pieces, whatever stands beside; saved with the tagger."""

import json

import pytest
import torch
from safetensors.torch import save_file

from separable.data import entities, vectors
from separable.data.word_pieces import WordPieces
from separable.data.words import Lexicon
from separable.errors import InputError
from separable.models.saved_tagger import SavedTagger
from separable.models.sentence_encoder import Bert, SentenceEncoder
from separable.models.tagger import Shape, Tagger
from separable.models.word_encoder import WordEncoder

CONFIG = {
    "model_type": "bert", "hidden_act": "gelu", "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20,
    "num_hidden_layers": 2, "vocab_size": 10, "max_position_embeddings": 8, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.0,
}  # fmt: skip
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b", "c", "-", "d", "e"]


@pytest.fixture
def encoder():
    torch.manual_seed(4)
    bert = Bert(CONFIG)
    for parameter in bert.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return WordEncoder(SentenceEncoder(bert, WordPieces(PIECES)), CONFIG).eval()


@torch.no_grad()
def test_a_word_is_the_mean_of_its_pieces(encoder):
    said = encoder([["ab", "C-d", "e"]])
    outputs, _ = encoder.encoder.tokens([[2, 4, 5, 6, 7, 8, 9, 3]])  # [CLS] a ##b c - d e [SEP]
    expected = torch.stack([outputs[0, 1:3].mean(0), outputs[0, 3:6].mean(0), outputs[0, 6]])
    torch.testing.assert_close(said, expected)


@torch.no_grad()
def test_a_sentence_is_read_alone_and_one_too_long_for_the_encoder_in_parts(encoder):
    long = ["a", "c", "d", "e", "ab", "c", "c", "d"]  # nine pieces, where six have room
    together = encoder([["e"], long, [], ["c", "d"]])
    parts = [["e"], ["a", "c", "d", "e", "ab"], ["c", "c", "d"], ["c", "d"]]
    torch.testing.assert_close(together, torch.cat([encoder([part]) for part in parts]))


@torch.no_grad()
def test_a_word_without_a_piece_is_zero_and_keeps_its_place(encoder):
    said = encoder([["a", "\u200b", "c"]])
    assert not said[1].any()
    torch.testing.assert_close(said[[0, 2]], encoder([["a", "c"]]))
    assert not encoder([["\u200b"]]).any()
    assert encoder([["ababababababab"]]).isfinite().all()


def test_any_number_of_sentences_comes_back_in_their_order(encoder):
    sentences = [["a"] * (1 + n % 5) + ["c"] for n in range(150)]
    with torch.no_grad():
        expected = torch.cat([encoder([s]) for s in sentences])
    torch.testing.assert_close(encoder.words(sentences).float(), expected, atol=5e-3, rtol=5e-3)


def test_a_tagger_keeps_its_encoder(tmp_path, encoder):
    tags, lexicon = entities.bioes_tags(["LOC"]), Lexicon.of(["a", "c"] * 5)
    sizes = [len(parts) for parts in lexicon.affixes]
    shape = Shape(tags, len(lexicon.changes), len(lexicon.characters), sizes, width=16, encoder_size=12)
    saved = SavedTagger(Tagger(shape), lexicon, vectors.none(), "sentence", encoder)
    for parameter in saved.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    saved.save(tmp_path / "tagger")
    loaded = SavedTagger.load(tmp_path / "tagger")
    assert loaded.encoder.encoder.pieces.places == encoder.encoder.pieces.places
    for name, value in encoder.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[name].half(), value.half()), name
    sentences = [["a", "c", "ab"], ["e", "d"]]
    assert loaded.tag(sentences) == saved.tag(sentences)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    save_file({"bert.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="holds no encoder of sentences"):
        WordEncoder.load(tmp_path)
