import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from separable.data import vectors
from separable.data.conll import Sentence
from separable.data.rows import GAP, Corpus, other_places, pack
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


@given(st.lists(st.integers(1, 30), min_size=1), st.integers(0, 80))
def test_packed_sentences_never_come_nearer_than_the_gap(lengths, width):
    rows, wide, starts = pack(lengths, width)
    assert wide == max(width, *lengths)
    taken = sorted((start, start + length) for start, length in zip(starts, lengths, strict=True))
    assert max(end for _, end in taken) <= rows * wide
    for (a, b), (c, _) in itertools.pairwise(taken):
        assert b <= c
        assert a // wide != c // wide or c - b >= GAP
    assert all(a // wide == (b - 1) // wide for a, b in taken)


@pytest.mark.parametrize("whole", [False, True])
def test_a_batch_holds_every_word_where_places_say(corpus, whole):
    numbers = [2, 0, 3]
    batch = corpus.batch(numbers, whole)
    flat = batch.words.flatten()
    for number, places, tags in zip(numbers, batch.places.tolist(), batch.tags.tolist(), strict=True):
        sentence = SENTENCES[number]
        for word, tag, place, got in zip(sentence.words, sentence.tags, places, tags, strict=False):
            row = batch.features[flat[place]]
            assert torch.equal(row, corpus.table.rows()[corpus.table.types[word]])
            assert got == TAGS[tag]
        assert places[len(sentence.words) :] == [-1] * (len(places) - len(sentence.words))
    assert int((flat > 0).sum()) == sum(len(SENTENCES[n].words) for n in numbers)


def test_flags_mark_first_words_and_loud_sentences(corpus):
    batch = corpus.batch([0, 1])
    assert batch.flags.tolist() == [[1, 0, 0], [3, 2, 0]]


def test_memory_pairs_the_places_of_a_name_within_its_document_only(corpus):
    batch = corpus.batch([0, 1, 2, 3], whole_documents=True)
    words = {int(p): (n, w) for n, row in enumerate(batch.places.tolist()) for w, p in enumerate(row) if p >= 0}
    pairs = {(words[i], words[j]) for i, j in batch.pairs.t().tolist()}
    # Blair in 0 and BLAIR in 1; Blair twice in 3; "the" is nowhere written with a capital
    assert pairs == {((0, 0), (1, 0)), ((1, 0), (0, 0)), ((3, 0), (3, 5)), ((3, 5), (3, 0))}


def test_memory_pairs_are_all_ordered_pairs_and_grow_linearly_in_long_documents():
    count = 200
    pairs = other_places(torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.bool), torch.arange(count))
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
        changes = batch.features[batch.words.flatten(), 1]
        assert len(changes.unique()) == 1
        seen.add(int(changes[0]))
    assert seen == {0, corpus.table.changes["rare"]}


def test_nothing_is_forgotten_without_being_asked(corpus):
    assert torch.equal(corpus.batch([0, 3]).features, corpus.batch([0, 3]).features)
    assert (corpus.batch([3]).features[1:, 1] > 0).any()


@pytest.mark.parametrize("whole", [False, True])
def test_groups_hold_every_sentence_once_and_documents_whole(corpus, whole):
    for draw in (None, random.Random(3)):
        groups = corpus.groups(whole, words=105 if whole else 5, draw=draw)
        assert sorted(n for group in groups for n in group) == [0, 1, 2, 3]
        assert len(groups) > 1
        if whole:
            assert sorted(map(tuple, groups)) == [(0, 1, 2), (3,)]


def test_the_same_draw_gives_the_same_groups(corpus):
    first, second = (corpus.groups(False, 5, random.Random(7)) for _ in range(2))
    assert first == second
