import lzma

import pytest
import torch
from safetensors.torch import save_file

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


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a 1 2\nb 1\n", "line 2 has 1 numbers, not as many as before"),
        ("a 1 2\nb 1 x\n", "line 2 is not a word and its numbers"),
        ("", "holds no vectors"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, rule):
    with pytest.raises(InputError, match=rule):
        vectors.read(write(tmp_path / "v.txt", text))


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
