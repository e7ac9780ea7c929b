import gzip
import lzma

import pytest
import torch
from safetensors.torch import save_file

from separable import progress
from separable.data import vectors
from separable.errors import InputError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("header", ["", "2 3\n"])
def test_reads_text_with_and_without_a_header(tmp_path, header):
    read = vectors.read(write(tmp_path / "v.txt", header + "the 1 2 3\nparis 4 5 -6.5\n"))
    assert read.places == {"the": 0, "paris": 1}
    assert read.table.tolist() == [[1, 2, 3], [4, 5, -6.5]]


def test_reads_packed_text(tmp_path):
    (tmp_path / "v.txt.xz").write_bytes(lzma.compress(b"a 1\nb 2\n"))
    assert vectors.read(tmp_path / "v.txt.xz").places == {"a": 0, "b": 1}


def test_a_word_may_hold_spaces_and_bad_lines_are_named_counted_and_left_out(tmp_path, capsys):
    lines = ["the 1 2", "at name@domain.com 3 4"]
    lines += [". . . 5 6", "7 7 8", "short 1", "odd 1 x", "far nan 2", "", "a 9 10 "]
    with progress.shown():
        read = vectors.read(write(tmp_path / "v.txt", "\n".join(lines) + "\n"))
    assert read.places == {"the": 0, "at name@domain.com": 1, ". . .": 2, "7": 3, "a": 4}
    assert read.table.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    assert [line.split(" is not a word and its 2 numbers: ") for line in read.skipped] == [
        ["line 5", "'short 1'"], ["line 6", "'odd 1 x'"], ["line 7", "'far nan 2'"], ["line 8", "''"],
    ]  # fmt: skip
    assert "v.txt: 4 lines left out, the first: line 5" in capsys.readouterr().err


def test_a_first_line_with_spaces_in_its_word_does_not_set_the_size(tmp_path):
    read = vectors.read(write(tmp_path / "v.txt", "1 2 3 4\na 5 6\nb 7 8\n"))
    assert read.places == {"1 2": 0, "a": 1, "b": 2}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"a b\nc 1 2\nd e\nf g\n", "holds no vectors: line 1 is not .* 3 of 4 lines are bad"),
        (b"", "holds no vectors"),
        ("a 1\ncafé 2\n".encode("latin-1"), r"line 2 is not UTF-8 \(byte 0xe9\)"),
    ],
)
def test_what_is_no_file_of_vectors_is_refused(tmp_path, content, rule):
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(InputError, match=rule):
        vectors.read(tmp_path / "v.txt")


@pytest.mark.parametrize(("ending", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_a_packed_file_that_is_cut_short_is_refused(tmp_path, ending, pack):
    (tmp_path / f"v.txt{ending}").write_bytes(pack(b"a 1\nb 2\n" * 1000)[:-20])
    with pytest.raises(InputError, match=r"vectors = .* cannot be unpacked"):
        vectors.read(tmp_path / f"v.txt{ending}")


def test_safetensors_bring_back_words_and_vectors(tmp_path):
    kept = vectors.Vectors({"straße": 0, "東京": 1}, torch.tensor([[0.5, 1.0], [2.0, -3.0]]).half())
    vectors.save(kept, tmp_path / "v.safetensors")
    read = vectors.read(tmp_path / "v.safetensors")
    assert read.places == kept.places
    assert torch.equal(read.table, kept.table.float())


def test_safetensors_bring_back_none(tmp_path):
    vectors.save(vectors.none(7), tmp_path / "v.safetensors")
    assert vectors.read(tmp_path / "v.safetensors").table.shape == (0, 7)


def test_safetensors_that_hold_something_else_are_refused(tmp_path):
    save_file({"vectors": torch.zeros(3, 2)}, tmp_path / "v.safetensors")
    with pytest.raises(InputError, match="must be safetensors with"):
        vectors.read(tmp_path / "v.safetensors")
    save_file(
        {"vectors": torch.zeros(3, 2), "words": torch.tensor([97], dtype=torch.uint8)}, tmp_path / "v.safetensors"
    )
    with pytest.raises(InputError, match="has 1 words for vectors"):
        vectors.read(tmp_path / "v.safetensors")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        vectors.read(tmp_path / "none.txt")
