"""Images held as bytes: the same whether held or read anew, and nothing is lost on the way."""

import copy

import numpy
import pytest
import torch
from PIL import Image

from separable.data import Preparation, open_images
from separable.data.pixels import Pixels
from separable.errors import InputError

PLAIN = Preparation()


def save(folder, name, pixels):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def colour(tmp_path):
    draw = numpy.random.default_rng(0)
    for i in range(6):
        save(tmp_path, f"{'ab'[i % 2]}/{i}.png", draw.integers(0, 256, (5, 7, 3), dtype=numpy.uint8))
    return tmp_path


def test_bytes_are_those_of_the_files_held_or_read_anew(colour):
    held, anew = (Pixels(open_images(colour, PLAIN), held_bytes=limit) for limit in (1 << 20, 0))
    numbers = torch.tensor([4, 0, 5, 0])
    files = sorted(colour.rglob("*.png"))
    expected = torch.stack([torch.tensor(numpy.array(Image.open(files[n]))).permute(2, 0, 1) for n in numbers])
    for pixels in (held, anew):
        assert pixels.shape == (3, 5, 7)
        assert len(pixels) == 6
        assert pixels.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert torch.equal(pixels.take(numbers), expected)


def test_an_image_that_cannot_be_read_shifts_no_other(colour):
    (colour / "a" / "1.png").write_bytes(b"no image")
    whole = Pixels(open_images(colour, PLAIN))
    anew = Pixels(open_images(colour, PLAIN), held_bytes=0)
    everything = torch.arange(6)
    assert len(whole) == len(anew) == 6
    assert torch.equal(whole.take(everything), anew.take(everything))
    assert [name for name, _ in anew.skipped] == ["a/1.png"]


def test_grey_images_alone_are_one_channel_and_among_colour_ones_are_counted(tmp_path, colour):
    grey = numpy.arange(35, dtype=numpy.uint8).reshape(5, 7)
    for name in ("a/0.png", "b/0.png"):
        save(tmp_path / "grey", name, grey)
    alone = Pixels(open_images(tmp_path / "grey", PLAIN))
    assert alone.shape == (1, 5, 7)
    assert torch.equal(alone.take(torch.tensor([1]))[0, 0], torch.tensor(grey))

    save(colour, "a/0.png", grey)
    mixed = Pixels(open_images(colour, PLAIN, classes=["a", "b", "grey"]))
    assert (mixed.grey, mixed.shape[0]) == (3, 3)  # two of them in the folder "grey" itself
    assert torch.equal(mixed.take(torch.tensor([0]))[0], torch.tensor(grey).expand(3, 5, 7))


def test_colour_becomes_grey_where_asked_as_preparation_has_it(colour):
    ours = Pixels(open_images(colour, PLAIN), channels=1).take(torch.arange(6))
    theirs = torch.stack([x for x, _ in open_images(colour, Preparation(mean=(0.0,), std=(1.0,), channels=1))]) * 255
    assert (ours.float() - theirs).abs().max() <= 1


def test_a_copy_shares_the_images(colour):
    pixels = Pixels(open_images(colour, PLAIN))
    assert copy.deepcopy({"held": pixels})["held"] is pixels


def test_sizes_that_differ_missing_labels_and_classes_without_images_are_told(colour):
    for i in range(300):
        save(colour, f"b/{i + 10}.png", numpy.zeros((5, 7, 3), numpy.uint8))
    save(colour, "b/999.png", numpy.zeros((4, 4, 3), numpy.uint8))
    with pytest.raises(InputError, match=r"differ in size"):
        Pixels(open_images(colour, PLAIN))
    with pytest.raises(InputError, match="has no labels"):
        Pixels(open_images(colour / "a", PLAIN))
    assert Pixels(open_images(colour, Preparation((5, 5)), classes=["a", "b", "c"])).empty == ["c"]
