"""Word pieces: the longest first, lower case without accents, what no piece fits, files that are none."""

import pytest

from separable.data.word_pieces import LONGEST_WORD, WordPieces, padded, split
from separable.errors import InputError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "##a", "cafe", ",", "北", "0"]


@pytest.fixture
def pieces(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return WordPieces(file)


def test_a_word_becomes_its_longest_pieces_from_the_left(pieces):
    assert [PIECES[n] for n in pieces.of_word("unaffable")] == ["un", "##aff", "##able"]
    assert [PIECES[n] for n in pieces.of_word("una")] == ["un", "##a"]


def test_a_word_that_cannot_be_cut_to_its_end_is_unknown_whole(pieces):
    assert pieces.of_word("unfit") == [1]
    assert pieces.of_word("un" * LONGEST_WORD) == [1]


def test_a_text_is_cut_to_its_limit_and_keeps_both_ends(pieces):
    assert [PIECES[n] for n in pieces.of_text("Café,北 UNAFFABLE", 99)] == [
        "[CLS]", "cafe", ",", "北", "un", "##aff", "##able", "[SEP]"
    ]  # fmt: skip
    assert [PIECES[n] for n in pieces.of_text("café, unaffable", 4)] == ["[CLS]", "cafe", ",", "[SEP]"]
    assert pieces.of_text("", 8) == [2, 3]


def test_controls_vanish_and_every_kind_of_space_parts():
    assert split("a\x07b\u200bc") == ["abc"]  # a zero-width space is a control, too
    assert split("line\u3000wide\u00a0hard\ttab") == ["line", "wide", "hard", "tab"]
    assert split("don't—5%") == ["don", "'", "t", "—", "5", "%"]


def test_rows_are_filled_up_to_the_longest():
    assert padded([[1], [2, 3]], 0) == [[1, 0], [2, 3]]


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        WordPieces(tmp_path / "nothing.txt")
    (tmp_path / "other.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(InputError, match=r"has no piece \[CLS\], \[SEP\]"):
        WordPieces(tmp_path / "other.txt")
