"""csv lists of images: what is understood, and what each bad line is told as."""

import pytest
from PIL import Image

from separable.data import open_images
from separable.data.pixels import Pixels
from separable.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, value in (("a", 10), ("b", 200), ("c", 90)):
        Image.new("L", (6, 4), value).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


def write(folder, text, name="list.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        "pictures/a.png,dark\npictures/b.png,light\n",
        "file,label\npictures/a.png,dark\npictures/b.png,light\n",
        "\ufefflabel;width;path\r\ndark;6;pictures/a.png\r\nlight;6;pictures/b.png\r\n",
        '"pictures/a.png"\tdark\n\n pictures/b.png \t light\n',
    ],
    ids=["plain", "named columns", "other order, semicolons, mark, CRLF", "tabs, blanks, an empty line"],
)
def test_reads_files_and_labels(folder, text):
    images = open_images(write(folder, text))
    assert images.classes == ["dark", "light"]
    assert [(round(float(x.mean() * 255)), y) for x, y in images] == [(10, 0), (200, 1)]
    assert images.skipped == []


def test_bad_lines_are_told_with_their_numbers_and_the_rest_is_read(folder):
    (folder / "pictures" / "d.png").write_bytes(b"")
    text = (
        "file,label\npictures/a.png,x\npictures/b.png,\npictures/gone.png,y\n,y\npictures/c.png,y\npictures/d.png,y\n"
    )
    pixels = Pixels(open_images(write(folder, text), {"mean": [0, 0, 0], "std": [1, 1, 1]}))
    assert pixels.labels.tolist() == [0, 1]
    assert pixels.skipped == [
        ("list.csv line 3", "has no label"),
        ("list.csv line 4", "names pictures/gone.png, which is not there"),
        ("list.csv line 5", "has no file"),
        ("pictures/d.png", "is not an image, whatever its name says"),
    ]
    with pytest.raises(InputError, match=r"4 cannot be used, the first list\.csv line 3: has no label"):
        Pixels(open_images(folder / "list.csv", {"mean": [0, 0, 0], "std": [1, 1, 1]}), strict=True)


def test_numbers_are_classes_in_the_order_of_numbers(folder):
    images = open_images(write(folder, "pictures/a.png,10\npictures/b.png,9\npictures/c.png,x\n"))
    assert images.classes == ["9", "10", "x"]


def test_a_label_unseen_in_training_is_refused_with_its_line(folder):
    with pytest.raises(InputError, match="line 2 has the label new, which is none of the network's 1 classes"):
        open_images(write(folder, "pictures/a.png,old\npictures/b.png,new\n"), classes=["old"])


def test_another_encoding_is_told_with_its_line(folder):
    path = write(folder, "pictures/a.png,ja\npictures/b.png,schön\n", encoding="latin-1")
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        open_images(path)


def test_a_list_without_any_image_is_refused(folder):
    with pytest.raises(InputError, match=r"names no image and its label in any line; list\.csv line 1: has no label"):
        open_images(write(folder, "pictures/a.png\n"))
    with pytest.raises(InputError, match="names a part of a folder"):
        open_images(write(folder, "pictures/a.png,x\n"), split="test")
