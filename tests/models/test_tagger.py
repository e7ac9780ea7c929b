import pytest
import torch

from separable.data import entities, vectors
from separable.data.conll import Sentence
from separable.data.rows import Corpus
from separable.data.words import Lexicon, WordTable
from separable.errors import InputError
from separable.layers import SeparableConv1d
from separable.models.saved_tagger import SavedTagger
from separable.models.tagger import Shape, Tagger

SENTENCES = [
    Sentence(["Blair", "met", "Chirac", "in", "a", "small", "town"], ["S-PER", "O", "S-PER", "O", "O", "O", "O"]),
    Sentence(["BLAIR", "LEFT"], ["S-PER", "O"]),
    Sentence(["rain"], ["O"]),
    Sentence(["so", "said", "Blair", "of", "Leeds"], ["O", "O", "S-PER", "O", "S-LOC"]),
]
LEXICON = Lexicon.of([word for s in SENTENCES for word in s.words], affix_from=1)
WORDS = vectors.Vectors({"blair": 0, "rain": 1}, torch.randn(2, 6))


def make(memory_after=(), **options):
    torch.manual_seed(3)
    shape = Shape(
        entities.bioes_tags(["LOC", "PER"]), len(LEXICON.changes), len(LEXICON.characters),
        [len(parts) for parts in LEXICON.affixes], vector_size=6, width=16, memory_after=memory_after, **options,
    )  # fmt: skip
    network = Tagger(shape)
    for parameter in network.parameters():  # zeros at the start would hide what a part does
        torch.nn.init.normal_(parameter, std=0.3)
    network.characters.table.weight.data[0] = 0  # the absence of a character
    return network.eval()


@pytest.fixture
def corpus():
    places = {tag: n for n, tag in enumerate(entities.bioes_tags(["LOC", "PER"]))}
    return Corpus(SENTENCES, WordTable(LEXICON, WORDS), places)


@torch.no_grad()
def test_a_sentence_reads_the_same_alone_and_packed_among_others(corpus):
    network = make(topic_after=(2,))
    packed = network(corpus.batch([0, 1, 2, 3]))
    for number, sentence in enumerate(SENTENCES):
        alone = network(corpus.batch([number]))
        torch.testing.assert_close(packed[number, : len(sentence.words)], alone[0])


@torch.no_grad()
def test_the_memory_reaches_names_in_other_sentences_and_nothing_else_of_them(corpus):
    network = make(memory_after=(6,))  # after the last block: no convolution spreads what it brings
    with_others = network(corpus.batch([0, 1, 2, 3], whole_documents=True))
    changed = []
    for number, sentence in enumerate(SENTENCES):
        alone = network(corpus.batch([number], whole_documents=True))[0]
        difference = (with_others[number, : len(sentence.words)] - alone).abs().amax(1)
        changed += [sentence.words[n] for n, d in enumerate(difference.tolist()) if d > 1e-5]
    assert changed == ["Blair", "BLAIR", "Blair"]


def test_every_parameter_is_trained(corpus):
    network = make(memory_after=(2, 4)).train()
    network.loss(corpus.batch([0, 1, 2, 3], whole_documents=True)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_loss_and_gradient_are_finite_without_any_pair_of_names(corpus):
    network = make(memory_after=(2, 4))
    loss = network.loss(corpus.batch([2], whole_documents=True))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_encoder_is_made_of_separable_convolutions():
    network = make()
    assert [block.conv_dw.dilation for block in network.blocks] == [(1,), (2,), (4,), (1,), (2,), (4,)]
    assert {tuple(block.conv_dw.weight.shape) for block in network.blocks} == {(16, 1, 3)}
    assert isinstance(network.characters.conv, SeparableConv1d)


@torch.no_grad()
def test_what_an_encoder_says_of_a_word_reaches_it_and_its_neighbours(corpus):
    network = make(dilations=(1,), encoder_size=5)
    corpus.encoded = torch.zeros(len(corpus.types), 5)
    before = network(corpus.batch([0, 1]))
    corpus.encoded[2] = 1  # Chirac
    changed = (network(corpus.batch([0, 1])) - before).abs().amax(2) > 1e-6
    assert changed.tolist() == [[False, True, True, True, False, False, False], [False] * 7]


def test_a_convolution_that_would_reach_the_next_sentence_is_refused():
    with pytest.raises(InputError, match="must not reach further than 4 places"):
        make(dilations=(1, 8))


def test_it_learns_four_sentences_by_heart(corpus):
    network = make(memory_after=(2,), block_dropout=0.0, feature_dropout=0.0, input_dropout=0.0, output_dropout=0.0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    batch = corpus.batch([0, 1, 2, 3], whole_documents=True)
    for _ in range(60):
        optimizer.zero_grad()
        network.loss(batch).backward()
        optimizer.step()
    assert torch.equal(network.decode(batch), batch.tags)


@pytest.mark.parametrize("context", ["sentence", "document"])
def test_a_saved_tagger_comes_back_the_same(tmp_path, context):
    saved = SavedTagger(make((2,) if context == "document" else ()), LEXICON, WORDS, context)
    saved.save(tmp_path / "tagger")
    loaded = SavedTagger.load(tmp_path / "tagger")
    given = [[*s.words, "Unseen", "中"] for s in SENTENCES]
    assert loaded.tag(given) == saved.tag(given)
    assert {file.suffix for file in (tmp_path / "tagger").iterdir()} == {".json", ".safetensors"}


def test_a_tagger_without_vectors_comes_back_too(tmp_path):
    saved = SavedTagger(make(), LEXICON, vectors.none(6), "sentence")
    saved.save(tmp_path / "tagger")
    assert SavedTagger.load(tmp_path / "tagger").tag([["Blair", "rain"]]) == saved.tag([["Blair", "rain"]])


def test_empty_sentences_get_no_tags_and_lose_no_others():
    saved = SavedTagger(make(), LEXICON, WORDS, "sentence")
    words = SENTENCES[0].words
    assert [len(tags) for tags in saved.tag([[], words, [], ["a"]])] == [0, len(words), 0, 1]
    assert saved.tag([]) == []
    assert saved.tag([[]]) == [[]]


def test_sentences_of_other_documents_change_nothing():
    saved = SavedTagger(make((2, 4), topic_after=(2,)), LEXICON, WORDS, "document")
    words = [s.words for s in SENTENCES]
    assert saved.tag(words, [5, 5, 7, 7]) == saved.tag(words[:2], [0, 0]) + saved.tag(words[2:], [0, 0])


def test_without_documents_each_sentence_is_read_alone():
    saved = SavedTagger(make((2, 4), topic_after=(2,)), LEXICON, WORDS, "document")
    words = [s.words for s in SENTENCES]
    together = saved.tag(words)
    assert together == [saved.tag([w])[0] for w in words]
    saved.context = "sentence"
    assert together == saved.tag(words, [0, 0, 0, 0])


def test_a_folder_that_is_no_tagger_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no saved network for tokens"):
        SavedTagger.load(tmp_path)
    saved = SavedTagger(make(), LEXICON, WORDS, "sentence")
    saved.save(tmp_path / "tagger")
    (tmp_path / "tagger" / "weights.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    with pytest.raises(InputError, match="is no saved network for tokens"):
        SavedTagger.load(tmp_path / "tagger")
