import random

import pytest
import torch

from separable.data import vectors
from separable.data.conll import Sentence
from separable.data.rows import GAP, LONGEST_DOCUMENT, STEP, Corpus, other_places
from separable.data.words import Lexicon, WordTable

TAGS = {"O": 0, "S-PER": 1, "S-LOC": 2}
SENTENCES = [
    Sentence(["Blair", "met", "Chirac"], ["S-PER", "O", "S-PER"], document=0),
    Sentence(["BLAIR", "LEFT"], ["S-PER", "O"], document=0),
    Sentence(["the", "end"], ["O", "O"], document=0),
    Sentence(["Blair", "of", "the", "shop", "said", "Blair"], ["S-PER", "O", "O", "O", "O", "S-PER"], document=1),
]


@pytest.fixture
def corpus():
    words = [word for s in SENTENCES for word in s.words]
    return Corpus(SENTENCES, WordTable(Lexicon.of(words), vectors.none(4)), TAGS)


@pytest.mark.parametrize("whole", [False, True])
def test_a_batch_holds_every_word_where_places_say(corpus, whole):
    numbers = [2, 0, 3]
    batch = corpus.batch(numbers, whole)
    for number, places, tags in zip(numbers, batch.places.tolist(), batch.tags.tolist(), strict=True):
        sentence = SENTENCES[number]
        for word, tag, place, got in zip(sentence.words, sentence.tags, places, tags, strict=False):
            row = batch.features[batch.words[place]]
            assert torch.equal(row, corpus.table.rows()[corpus.table.types[word]])
            assert got == TAGS[tag]
        assert places[len(sentence.words) :] == [-1] * (len(places) - len(sentence.words))
    assert int((batch.places >= 0).sum()) == sum(len(SENTENCES[n].words) for n in numbers)


def test_words_are_filled_up_with_a_sentence_that_no_place_leads_to(corpus):
    batch = corpus.batch([2, 0, 3], whole_documents=True)
    real = 2 + 3 + 6
    assert len(batch.words) == len(batch.flags) == len(batch.sentences) == len(batch.line) == STEP
    assert len(batch.features) % STEP == 0
    assert batch.sentences[:real].max() == 2
    assert (batch.sentences[real:] == 3).all()
    assert not set(batch.scopes[:real].tolist()) & set(batch.scopes[real:].tolist())


def test_sentences_stand_the_gap_apart_on_the_line(corpus):
    batch = corpus.batch([0, 1, 2, 3])
    steps, change = batch.line.diff(), batch.sentences.diff() > 0
    assert (steps[~change] == 1).all()
    assert (steps[change] == 1 + GAP).all()


def test_flags_mark_first_words_loud_sentences_and_in_a_document_where_they_stand(corpus):
    assert corpus.batch([0, 1]).flags[:5].tolist() == [1, 0, 0, 3, 2]
    assert corpus.batch([0, 1, 2, 3], True).flags[:13].tolist() == [5, 4, 4, 11, 10, 13, 12, 5, 4, 4, 4, 4, 4]


def test_what_may_be_seen_together_is_the_document_or_the_sentence(corpus):
    sentences = [0] * 3 + [1] * 2 + [2] * 2 + [3] * 6
    alone, together = corpus.batch([0, 1, 2, 3]).scopes[:13], corpus.batch([0, 1, 2, 3], True).scopes[:13]
    assert alone.tolist() == sentences
    assert together.tolist() == [0] * 7 + [1] * 6


def test_a_document_read_alone_is_as_its_sentences_are(corpus):
    left, sentences = corpus.batch([0, 1, 2, 3], True, alone=1.0), corpus.batch([0, 1, 2, 3])
    for name, value in vars(left).items():
        assert torch.equal(value, getattr(sentences, name)), name


def test_memory_pairs_the_places_of_a_name_within_its_document_only(corpus):
    batch = corpus.batch([0, 1, 2, 3], whole_documents=True)
    words = {int(p): (n, w) for n, row in enumerate(batch.places.tolist()) for w, p in enumerate(row) if p >= 0}
    pairs = {(words[i], words[j]) for i, j in batch.pairs.t().tolist()}
    # Blair in 0 and BLAIR in 1; Blair twice in 3; "the" is nowhere written with a capital
    assert pairs == {((0, 0), (1, 0)), ((1, 0), (0, 0)), ((3, 0), (3, 5)), ((3, 5), (3, 0))}


def test_memory_pairs_are_all_ordered_pairs_and_grow_linearly_in_long_documents():
    count = 200
    pairs = other_places(torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.bool))
    assert pairs.shape[1] == 3 * 64 * 63 + 8 * 7
    assert (pairs[0].diff() >= 0).all()
    assert {(j, i) for i, j in pairs.t().tolist()} == {(i, j) for i, j in pairs.t().tolist()}


def test_a_forgotten_word_is_forgotten_everywhere_in_its_document():
    sentence = Sentence(["Rare", "rare", "RARE"], ["O"] * 3)
    corpus = Corpus([sentence] * 2, WordTable(Lexicon.of(sentence.words * 2), vectors.none(4)), TAGS)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        batch = corpus.batch([0, 1], forget=6.0)  # six of it in training: an even chance
        changes = batch.features[batch.words[:6], 1]
        assert len(changes.unique()) == 1
        seen.add(int(changes[0]))
    assert seen == {0, corpus.table.changes["rare"]}


def test_words_new_in_fine_tuning_are_forgotten_by_how_often_they_stand_there():
    """The lexicon of an earlier training never counted them; what it counted stays known."""
    earlier = Lexicon.of(["the"] * 99)
    sentence = Sentence(["once", *["often"] * 99, "the"], ["O"] * 101)
    known = vectors.Vectors({"once": 0, "often": 1, "the": 2}, torch.eye(3))
    corpus = Corpus([sentence], WordTable(earlier, known), TAGS)
    seen = {"once": 0, "often": 0, "the": 0}
    torch.manual_seed(0)
    for _ in range(200):
        batch = corpus.batch([0], forget=1.0)
        for place, word in ((0, "once"), (1, "often"), (100, "the")):
            seen[word] += int(batch.features[batch.words[place], 0] == 0)
    assert 70 < seen["once"] < 130  # an even chance
    assert max(seen["often"], seen["the"]) < 10  # one in a hundred


def test_a_file_that_marks_no_documents_is_read_in_parts_of_consecutive_sentences():
    words = ["Blair", "said", "so", "again", "."]
    sentences = [Sentence(words, ["S-PER", "O", "O", "O", "O"]) for _ in range(3 * LONGEST_DOCUMENT // 5 + 1)]
    corpus = Corpus(sentences, WordTable(Lexicon.of(words), vectors.none(4)), TAGS)
    groups = corpus.groups(True, words=600)
    assert [n for group in groups for n in group] == list(range(len(sentences)))
    assert [5 * len(group) for group in groups] == [LONGEST_DOCUMENT] * 3 + [5]
    assert corpus.spots[:5] == [1, 2, 3, 4, 4]  # a part does not begin as a document does
    assert corpus.spots[LONGEST_DOCUMENT // 5] == 4
    both = corpus.batch([*groups[2][-2:], *groups[3]], whole_documents=True)
    assert both.scopes[:15].tolist() == [0] * 10 + [1] * 5


def test_a_shouted_sentence_is_read_as_its_words_in_capitals(corpus):
    loud = corpus.batch([0], shout=1.0)
    assert loud.flags[:3].tolist() == [3, 2, 2]
    for place, word in enumerate(["BLAIR", "MET", "CHIRAC"]):
        row = loud.features[loud.words[place]]
        assert torch.equal(row, corpus.table.rows()[corpus.table.types[word]])


def test_nothing_is_forgotten_without_being_asked():
    words = ["Blair"] * 4
    corpus = Corpus([Sentence(words, ["O"] * 4)], WordTable(Lexicon.of(words), vectors.none(4)), TAGS)
    assert torch.equal(corpus.batch([0]).features, corpus.batch([0]).features)
    assert (corpus.batch([0]).features[corpus.batch([0]).words[0], 1] > 0).all()


@pytest.mark.parametrize("whole", [False, True])
def test_groups_hold_every_sentence_once_and_documents_whole(corpus, whole):
    for draw in (None, random.Random(3)):
        groups = corpus.groups(whole, words=8 if whole else 5, draw=draw)
        assert sorted(n for group in groups for n in group) == [0, 1, 2, 3]
        assert len(groups) > 1
        if whole:
            assert sorted(map(tuple, groups)) == [(0, 1, 2), (3,)]


def test_the_same_draw_gives_the_same_groups(corpus):
    first, second = (corpus.groups(False, 5, random.Random(7)) for _ in range(2))
    assert first == second
