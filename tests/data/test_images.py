"""Images from folders, tars and idx files: the same pictures and labels from each, and what is wrong is named."""

import gzip
import io
import pickle
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from separable import progress
from separable.data import Preparation, files, open_images
from separable.errors import InputError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(12)]
CLASSES = ["ape", "bee", "cat"]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tree(prefix=""):
    return {f"{prefix}{CLASSES[LABELS[i]]}/{i:02d}.png": png(PIXELS[i]) for i in range(12)}


def write_folder(folder, contents):
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path, contents, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def pixels_by_name(images):
    return {images._names[i].rsplit("/")[-1]: images[i] for i in range(len(images))}


def assert_is_the_tree(images):
    assert images.classes == CLASSES
    items = pixels_by_name(images)
    assert len(items) == 12
    for i in range(12):
        x, label = items[f"{i:02d}.png"]
        assert label == LABELS[i]
        assert torch.equal((x * 255).round().byte(), torch.from_numpy(PIXELS[i]).permute(2, 0, 1))


@pytest.mark.parametrize("prefix", ["", "wrapper/", "train/", "wrapper/inner/train/"])
def test_a_folder_and_every_kind_of_tar_give_the_same(tmp_path, prefix):
    assert_is_the_tree(open_images(write_folder(tmp_path / "images", tree(prefix))))
    for suffix, mode in [("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz"), ("tgz", "w:gz")]:
        assert_is_the_tree(open_images(write_tar(tmp_path / f"a.{suffix}", tree(prefix), mode)))


def test_a_split_is_picked_by_name_and_the_choice_is_told(tmp_path):
    contents = tree("set/train/") | {f"set/test/{name}": data for name, data in list(tree().items())[:3]}
    for path in (write_folder(tmp_path / "images", contents), write_tar(tmp_path / "images.tar", contents)):
        assert_is_the_tree(open_images(path, split="train"))
        assert len(open_images(path, split="test")) == 3
        with pytest.raises(InputError, match="split = not given: must be one of test, train, the split folders of"):
            open_images(path)
        with pytest.raises(InputError, match="split = val: must be one of test, train"):
            open_images(path, split="val")
    with pytest.raises(InputError, match="has no split folders"):
        open_images(write_folder(tmp_path / "plain", tree()), split="test")


def test_a_class_may_be_called_train(tmp_path):
    contents = {f"{name}/{i}.png": png(PIXELS[i]) for i in range(4) for name in ("bus", "train")}
    assert open_images(write_folder(tmp_path, contents)).classes == ["bus", "train"]


def test_files_without_class_folders_have_no_labels(tmp_path):
    flat = {f"{i}.png": png(PIXELS[i]) for i in range(4)}
    for path in (
        write_folder(tmp_path / "a", flat),
        write_tar(tmp_path / "a.tar", {f"one/{k}": v for k, v in flat.items()}),
    ):
        images = open_images(path)
        x, labels = next(images.batches(4))
        assert x.shape == (4, 3, 6, 5)
        assert labels.tolist() == [-1] * 4
        assert not images.labelled
        with pytest.raises(InputError, match="has no labels; sort the images into one folder for each class"):
            images.require_labels()
    splits = {f"{split}/{name}": data for split in ("train", "test") for name, data in flat.items()}
    assert not open_images(write_folder(tmp_path / "b", splits), split="test").labelled


def test_an_unreadable_image_is_named_skipped_and_counted(tmp_path, capsys):
    contents = tree()
    contents["bee/01.png"] = b""
    contents["cat/02.png"] = contents["cat/02.png"][:80]
    contents["ape/03.png"] = b"<html>not found</html>"
    images = open_images(write_folder(tmp_path, contents))
    with progress.shown():
        batches = list(images.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 1]
    skipped = dict(images.skipped)
    assert sorted(skipped) == ["ape/03.png", "bee/01.png", "cat/02.png"]
    assert skipped["ape/03.png"] == "is not an image, whatever its name says"
    told = capsys.readouterr().err
    assert "skipped bee/01.png: is not an image" in told
    assert "3 of 12 images could not be read and were skipped" in told
    assert len(list(images.batches(4))) == 3
    assert len(images.skipped) == 3  # a second pass names nothing twice
    with pytest.raises(InputError, match=r"bee/01\.png: is not an image"):
        images[images._names.index("bee/01.png")]


def test_the_limit_counts_readable_images(tmp_path):
    contents = tree()
    contents["ape/00.png"] = b"broken"
    images = open_images(write_folder(tmp_path, contents))
    assert sum(len(y) for _, y in images.batches(4, limit=8)) == 8
    assert sum(len(y) for _, y in images.batches(4, limit=100)) == 11


def test_nothing_readable_is_an_error(tmp_path):
    images = open_images(write_folder(tmp_path, {"a/1.png": b"x", "b/2.png": b"y"}), Preparation())
    with pytest.raises(InputError, match=r"none of its 2 images can be read; the first, a/1\.png: is not an image"):
        list(images.batches())
    with pytest.raises(InputError, match="none of the images looked at can be read"):
        open_images(tmp_path)


def test_the_seed_decides_the_draw(tmp_path):
    images = open_images(write_folder(tmp_path, tree()))
    draws = [torch.cat([x for x, _ in images.batches(5, limit=7, seed=seed)]) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_images_of_different_sizes_need_a_size(tmp_path):
    write_folder(tmp_path, {"a/1.png": png(PIXELS[0]), "b/2.png": png(PIXELS[1][:4])})
    with pytest.raises(InputError, match="differ in size"):
        list(open_images(tmp_path).batches(2))
    assert next(open_images(tmp_path, {"size": 4}).batches(2))[0].shape == (2, 3, 4, 4)


def test_an_empty_class_folder_is_refused_because_it_would_shift_the_labels(tmp_path):
    write_folder(tmp_path, tree())
    (tmp_path / "bat").mkdir()
    with pytest.raises(InputError, match="class folder bat holds no images; fill it or remove it"):
        open_images(tmp_path)
    images = open_images(tmp_path, classes=["ape", "bat", "bee", "cat"])
    assert sorted(set(images._labels)) == [0, 2, 3]


def test_the_networks_own_order_of_classes_rules(tmp_path):
    images = open_images(write_folder(tmp_path, tree()), classes=["cat", "bee", "ape", "yak"])
    assert dict(zip(images._names, images._labels, strict=True))["cat/02.png"] == 0
    with pytest.raises(InputError, match="class folder cat, which is none of the network's 2 classes"):
        open_images(tmp_path, classes=["ape", "bee"])


def test_what_is_no_image_data_is_told(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no images"):
        open_images(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"must be a folder, a \.tar"):
        open_images(tmp_path / "notes.txt")
    write_tar(tmp_path / "train.tar", tree())
    with pytest.raises(InputError, match=r"holds no images .*, but train\.tar: name one of them"):
        open_images(tmp_path)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "train.tar").read_bytes()[:1000])
    (tmp_path / "text.tar.xz").write_text("hello")
    for name in ("cut.tar", "text.tar.xz"):
        with pytest.raises(InputError, match="is no readable tar"):
            open_images(tmp_path / name)


def test_a_tar_is_never_unpacked_and_its_links_are_not_followed(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", tree() | {"../../evil/0.png": png(PIXELS[0]), "._x/1.png": b"", "ape/n.txt": b"n"}
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("ape/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    images = open_images(path)
    assert_is_the_tree(images)
    assert images.skipped[1:] == [("ape/link.png", "is a link or a sparse file in the tar")]
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_member_outside_the_tar_is_skipped_and_named(mode, tmp_path):
    outside = {name: png(PIXELS[0]) for name in ("/abs/0.png", "../../evil/0.png", "ape/../dog/0.png")}
    path = write_tar(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), tree() | outside | {"/abs/n.txt": b"n"}, mode)
    for classes in (None, CLASSES):
        images = open_images(path, classes=classes)
        assert_is_the_tree(images)
        assert images.skipped == [(name, "lies outside the tar: its path is absolute or has a ..") for name in outside]


def test_a_compressed_tar_too_large_to_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_HELD_BYTES", 100)
    with pytest.raises(InputError, match=r"decompress it to a plain \.tar"):
        open_images(write_tar(tmp_path / "a.tar.gz", tree(), "w:gz"))


def test_workers_read_a_tar_in_parallel(tmp_path):
    images = open_images(write_tar(tmp_path / "a.tar", tree()))
    loader = DataLoader(images, 3, num_workers=2, multiprocessing_context="fork")
    alone = torch.cat([x for x, _ in images.batches(3)])
    assert torch.equal(torch.cat([x for x, _ in loader]), alone)


def test_a_set_of_images_can_be_pickled_for_workers_that_are_spawned(tmp_path):
    assert_is_the_tree(pickle.loads(pickle.dumps(open_images(write_folder(tmp_path, tree())))))


GREY, DIGITS = PIXELS[..., 0], np.array(LABELS)


def write_idx(folder, prefix="train", packed=False, images=None, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if packed else bytes
    end = ".gz" if packed else ""
    (folder / f"{prefix}-images-idx3-ubyte{end}").write_bytes(pack(idx(GREY) if images is None else images))
    if labels is not False:
        (folder / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(pack(idx(DIGITS) if labels is None else labels))
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_give_images_and_labels(tmp_path, packed):
    write_idx(tmp_path / "raw", packed=packed)
    file = next((tmp_path / "raw").glob("train-images*"))
    for images in (open_images(tmp_path), open_images(tmp_path, split="train"), open_images(file)):
        assert images.classes == ["0", "1", "2"]
        x, labels = next(images.batches(12))
        assert labels.tolist() == LABELS
        assert torch.equal((x[:, 0] * 255).round().byte(), torch.from_numpy(GREY.copy()))
    write_idx(tmp_path / "raw", "t10k", packed)
    with pytest.raises(InputError, match="split = not given: must be one of test, train, the idx files of"):
        open_images(tmp_path)
    assert open_images(tmp_path, split="test").path.name.startswith("t10k")
    assert open_images(tmp_path, split="t10k").path.name.startswith("t10k")


def test_idx_images_without_labels_are_unlabelled(tmp_path):
    assert not open_images(write_idx(tmp_path, labels=False)).labelled


def test_a_short_or_wrong_idx_file_says_by_how_much(tmp_path):
    with pytest.raises(InputError, match="is 7 bytes short: its header says 12 x 6 x 5"):
        open_images(write_idx(tmp_path / "a", images=idx(GREY)[:-7]))
    with pytest.raises(InputError, match="is longer than its header says: 12 x 6 x 5"):
        open_images(write_idx(tmp_path / "b", images=idx(GREY) + b"12"))
    with pytest.raises(InputError, match="holds 11 labels for the 12 images of train-images-idx3-ubyte"):
        open_images(write_idx(tmp_path / "c", labels=idx(DIGITS[:11])))
    with pytest.raises(InputError, match="does not begin as an idx file"):
        open_images(write_idx(tmp_path / "d", images=idx(DIGITS)))
    pixels = RNG.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    whole = gzip.compress(idx(pixels))
    folder = write_idx(tmp_path / "e", packed=True, labels=False)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"is \d+ bytes short: its header says 50 x 28 x 28"):
        open_images(folder)


def test_a_packed_idx_file_is_unpacked_no_further_than_its_header_says(tmp_path):
    endless = gzip.compress(idx(GREY) + bytes(100 << 20))
    folder = write_idx(tmp_path, packed=True, labels=False)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(endless)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="is longer than its header says: 12 x 6 x 5"):
            open_images(folder)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_function_given_as_preparation_is_recognised_from_the_images(tmp_path):
    def preprocess(image):
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        return torch.from_numpy((pixels - 0.4) / 0.2).permute(2, 0, 1)

    images = open_images(write_folder(tmp_path, tree()), preprocess)
    assert images.preparation == Preparation(mean=(0.4,) * 3, std=(0.2,) * 3)
