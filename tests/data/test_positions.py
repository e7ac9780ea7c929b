"""Positions and hashed features of a sentence, and sentences in batches."""

import math
import random

import pytest
import torch

from separable.data import positions, vectors
from separable.data.sentence_rows import SentenceRows, SentenceTable

TEXTS = [
    "Profit rose to EUR 13.1 mn from EUR 8.7 mn .",
    "净利增12%",
    "I don't know",
    "rose rose rose",
    "净利降",
    "I know",
]


def test_ideographs_stand_alone_and_words_stay_whole():
    assert positions.split("ST康美2018年净利US$5.3亿 don't") == [
        *("ST", "康", "美", "2018", "年", "净", "利", "US", "$", "5.3", "亿"),
        *("do", "n't"),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("from 8 mn to 9 mn", [3, 4]),
        ("to 1,234.5 mn from 2,000 mn", [3, 4]),
        ("5 % and 5 %", [1, 1]),  # equal
        ("5 % and 7 mn", [1, 1]),  # of other units
        ("in 2008 sales were 2009", [1, 1]),
        ("3 mn , 2 mn , 1 mn", [2, 5, 5]),
    ],
)
def test_numbers_of_one_unit_are_compared(text, wanted):
    words = positions.split(text)
    assert [flag for flag in positions.flags(words) if flag] == wanted


def test_hashing_is_the_same_everywhere():
    assert positions.bucket("profit rose", 1 << 16) == 1 + 0x066C63FE % 65535 == 27243  # CRC-32 of its bytes
    assert all(1 <= positions.bucket(str(n), 50) < 50 for n in range(1000))


def test_a_bag_weighs_by_count_and_rarity_to_length_one():
    table = SentenceTable.learn(TEXTS, vectors.none(4), 1 << 10, 1 << 8)
    rows = SentenceRows(TEXTS, [0] * 6, table)
    for numbers, weights in rows.bags:
        assert numbers.tolist() == sorted(set(numbers.tolist()))
        assert len(numbers) == 0 or float(weights.norm()) == pytest.approx(1, abs=1e-5)
    seen_once, seen_twice = (positions.bucket(gram, 1 << 16) for gram in ("rose rose", "净 利"))
    rarity = SentenceTable.learn(TEXTS, vectors.none(4), 1 << 16, 1 << 8).rarity
    assert float(rarity[seen_once]) == 0
    assert float(rarity[seen_twice]) == pytest.approx(1 + math.log(7 / 3))


def test_a_batch_keeps_every_sentence_apart():
    table = SentenceTable.learn(TEXTS, vectors.none(4), 1 << 10, 1 << 8)
    rows = SentenceRows([*TEXTS, "", "%"], list(range(8)), table)
    for numbers in ([0, 1, 2, 3], [7, 6, 0], [6]):
        batch = rows.batch(numbers)
        lengths = [rows.lengths[n] for n in numbers]
        assert batch.size == (len(numbers), max(*lengths, 1))
        assert len(batch.places) == len(batch.words) == len(batch.piece_starts) == sum(lengths)
        assert batch.labels.tolist() == numbers
        assert len(batch.bag_starts) == len(numbers)
        owner = batch.places // batch.size[1]
        assert torch.bincount(owner, minlength=len(numbers)).tolist() == lengths


def test_every_sentence_is_in_exactly_one_group():
    table = SentenceTable.learn(TEXTS, vectors.none(4), 1 << 10, 1 << 8)
    rows = SentenceRows(TEXTS * 5, [0] * 30, table)
    for draw in (None, random.Random(3)):
        groups = rows.groups(7, draw)
        assert sorted(n for group in groups for n in group) == list(range(30))
        assert [len(g) for g in sorted(groups, key=len)] == [2, 7, 7, 7, 7]
    assert rows.groups(7, random.Random(3)) == rows.groups(7, random.Random(3))
