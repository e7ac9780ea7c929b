"""Slices in the forms in which people have them, and the list of files that a csv holds."""

import pytest
import torch

from separable.conversion.who_pays import read_slices
from separable.conversion.who_pays.slices import masks
from separable.errors import InputError

FILES = ["a.png", "b.png", "c.png", "d.png"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([True, False, False, True], [0, 3]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        ([3, 0], [0, 3]),
        (torch.tensor([3, 0]), [0, 3]),
        (range(2), [0, 1]),
        ({1, 2}, [1, 2]),
        ({"b.png", "d.png"}, [1, 3]),
    ],
)
def test_a_slice_may_be_a_mask_numbers_or_files(given, expected):
    (mask,) = masks({"night": given}, 4, FILES).values()
    assert mask.nonzero().flatten().tolist() == expected


def test_a_value_for_each_example_makes_a_slice_of_each_value():
    found = masks({"light": ["day", "night", None, "day"]}, 4, None)
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "light: day": [True, False, False, True],
        "light: night": [False, True, False, False],
    }


def test_columns_of_tables_are_read():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"light": ["day", "night", "day", "day"], "dark": [False, True, False, False]})
    found = masks({"light": frame["light"], "dark": frame["dark"]}, 4, None)
    assert set(found) == {"light: day", "light: night", "dark"}


def test_a_csv_names_files_and_slices(tmp_path):
    file = tmp_path / "slices.csv"
    file.write_text("\ufefffile;more;Slice\na.png;x;night\n\nb.png;x;night\nb.png;x;rain\n", encoding="utf-8")
    found = read_slices(file)
    assert found == {"night": {"a.png", "b.png"}, "rain": {"b.png"}}
    assert masks(found, 4, FILES)["rain"].tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.png,night\n", "must begin with a line of column names, file and slice among them"),
        ("file,slice\na.png\n", "line 2 has no slice"),
        ("file,slice\n,night\n", "line 2 has no file"),
        ("file,slice\n", "names no file and its slice"),
        ("", "must begin with"),
    ],
)
def test_a_csv_of_another_kind_is_refused(tmp_path, text, said):
    file = tmp_path / "slices.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        read_slices(file)


def test_a_csv_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_slices(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"file,slice\n\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_slices(tmp_path / "bytes.csv")


@pytest.mark.parametrize(
    ("slices", "files", "said"),
    [
        (["night"], FILES, "must be a mapping"),
        ({"night": 3}, FILES, "must be a mask of as many booleans"),
        ({"night": [0.5, 1.5]}, FILES, "must be a mask of as many booleans"),
        ({"night": [True]}, FILES, "night, 1 values: must have one for each of 4 examples"),
        ({"light": ["day"]}, FILES, "light, 1 values: must have one for each of 4 examples"),
        ({"night": [4]}, FILES, "night, example 4: must be from 0 to 3"),
        ({"night": [0, 1, 0, 1]}, FILES, "names an example twice; for a value of each example give strings"),
        ({"night": {"a.png"}}, None, "names files; give the data as batches of"),
        ({"night": {"e.png"}}, FILES, "none of its 1 files is in the data, as e.png"),
        ({"night": []}, FILES, "night: holds no example"),
    ],
)
def test_slices_that_cannot_be_read_are_refused(slices, files, said):
    with pytest.raises(InputError, match=said):
        masks(slices, 4, files)
