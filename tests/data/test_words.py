import pytest
import torch

from separable.data import vectors
from separable.data.words import (
    AFFIXES,
    CHARACTERS,
    COUNT,
    LOWER,
    NAMED,
    Lexicon,
    WordTable,
    affixes,
    casing,
    number_form,
)

WORDS = ["The", "the", "EU", "1996", "1997", "café", "x", "x", "The"]


@pytest.fixture
def table():
    known = vectors.Vectors({"the": 0, "eu": 1, "0000": 2}, torch.eye(3))
    return WordTable(Lexicon.of(WORDS, change_from=2, affix_from=2), known)


def row(table, word):
    place = table.add([word])[0]
    return table.rows()[place].tolist()


@pytest.mark.parametrize(
    ("word", "expected"),
    [("...", 0), ("12.5", 1), ("A4", 2), ("the", 3), ("Paris", 4), ("EU", 5), ("A", 6), ("McCall", 7), ("中文", 3)],
)
def test_casing(word, expected):
    assert casing(word) == expected


def test_affixes_are_empty_where_the_word_is_shorter():
    assert affixes("a1b") == ["a", "a0", "a0b", "", "b", "0b", "a0b", ""]
    assert len(affixes("")) == AFFIXES


def test_numbers_share_a_form_for_vectors_and_changes(table):
    assert number_form("1996") == number_form("2024") == "0000"
    assert row(table, "1996")[:2] == row(table, "2024")[:2]
    assert table.vectors[row(table, "2024")[0]].tolist() == [0, 0, 1]


def test_vectors_are_found_in_lower_case_and_the_unknown_is_zero(table):
    assert table.vectors[row(table, "THE")[0]].tolist() == [1, 0, 0]
    assert table.vectors[row(table, "zebra")[0]].tolist() == [0, 0, 0]


def test_a_word_with_hyphens_takes_the_vector_of_a_part_a_name_if_there_is_one(table):
    assert table.vectors[row(table, "EU-the")[0]].tolist() == [0, 1, 0]
    assert table.vectors[row(table, "the-EU")[0]].tolist() == [0, 1, 0]
    assert table.vectors[row(table, "zebra-the")[0]].tolist() == [1, 0, 0]
    assert table.vectors[row(table, "7-2024-")[0]].tolist() == [0, 0, 0]


def test_counts_are_of_the_training_set(table):
    assert [row(table, word)[COUNT] for word in ("the", "2001", "zebra")] == [3, 2, 0]


def test_capitals_and_lower_case_letters_are_told():
    table = WordTable(Lexicon.of(WORDS), vectors.none())
    assert [[row(table, word)[column] for column in (NAMED, LOWER)] for word in ("Ab", "AB", "ab", "1.")] == [
        [1, 1], [1, 0], [0, 1], [0, 0],
    ]  # fmt: skip


def test_changes_begin_at_the_count_asked_for(table):
    assert row(table, "EU")[1] == 0  # seen once
    assert row(table, "x")[1] > 0


def test_long_words_keep_both_ends(table):
    characters = row(table, "x" * 10 + "unread" * 5 + "x" * 10)[3 + AFFIXES : 3 + AFFIXES + CHARACTERS]
    assert characters == [table.characters["x"]] * CHARACTERS


def test_new_words_get_new_rows_and_old_ones_keep_theirs(table):
    first = table.add(["zebra", "the"])
    before = table.rows()[first]
    assert table.add(["the", "zebra", "okapi"])[:2] == first[::-1]
    assert torch.equal(table.rows()[first], before)
    assert table.rows()[0].eq(0).all()  # the absence of a word
