"""Labelled images from folders or tars of class/file, csv lists, or idx files; path in, tensors out.

An image that cannot be read never stops the work: it is named, skipped and counted.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from separable.data import files, idx, image_lists
from separable.data.preparation import Preparation
from separable.errors import InputError, first_line, need
from separable.progress import say, track

_NAMED = 5  # unreadable images named while the work goes on; `skipped` names all


class ImageSet(Dataset):
    """Images and their labels; item i is (float32 [C, H, W], class number, or -1 where nothing says).

    Attributes:
        classes: names, in the order of the class numbers; empty where there are no labels.
        preparation: how images become tensors.
        skipped: (name, reason) of what could not be used, so far.
    """

    def __init__(
        self,
        path: Path,
        found: files.Files,
        open_image: Callable[[int], Any],
        preparation: Preparation | Callable | Mapping[str, Any] | None,
    ):
        self.path, self.classes = path, found.classes
        self._names, self._labels, self._open = found.names, found.labels, open_image
        self.skipped = list(found.skipped)
        self.preparation = self._settle(preparation)

    @property
    def names(self) -> list[str]:
        """Of each image, as it is called in messages."""
        return self._names

    @property
    def labelled(self) -> bool:
        return bool(self.classes)

    def require_labels(self) -> None:
        """Refuse images without labels, for work that measures accuracy."""
        if not self.labelled:
            raise InputError("data", str(self.path), "has no labels; sort the images into one folder for each class")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Raises InputError, naming the file, where it cannot be read."""
        item = self._read(range(len(self))[i])
        if isinstance(item, str):
            raise InputError("data", f"{self.path}/{self._names[i]}", item)
        return item

    def image(self, i: int):
        """Image i as PIL opens it, before preparation."""
        return self._open(range(len(self))[i])

    def readable(self) -> list[int]:
        """The numbers of the images that can be read, for work that goes over them many times."""
        return [i for i in track(range(len(self)), "checking images") if not isinstance(self._read(i), str)]

    def batches(
        self, size: int = 64, limit: int | None = None, seed: int | None = None, description: str = "reading images"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ([size, C, H, W], int64 [size]) in order, or drawn by `seed`; unreadable images are passed over.

        Args:
            limit: stop after this many readable images.
            description: what the progress shows.

        Raises:
            InputError: no image at all can be read, or two of one batch differ in size (give Preparation a size).
        """
        for inputs, labels, _ in self.named_batches(size, limit, seed, description):
            yield inputs, labels

    def named_batches(
        self, size: int = 64, limit: int | None = None, seed: int | None = None, description: str = "reading images"
    ) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """The same with the images' names."""
        if size < 1:
            raise InputError("size", size, "must be at least 1 image in a batch")
        drawn = torch.Generator().manual_seed(seed or 0)
        order = range(len(self)) if seed is None else torch.randperm(len(self), generator=drawn).tolist()
        wanted = len(self) if limit is None else min(limit, len(self))
        items: list[tuple[Tensor, int]] = []
        names: list[str] = []
        for i, item in track(self._readable(order, wanted), description, wanted):
            items.append(item)
            names.append(self._names[i])
            if len(items) == size:
                yield *self._stack(items), names
                items, names = [], []
        if items:
            yield *self._stack(items), names

    def _readable(self, order: Sequence[int], wanted: int) -> Iterator[tuple[int, tuple[Tensor, int]]]:
        read, unreadable = 0, 0
        for i in order:
            if read == wanted:
                break
            item = self._read(i)
            if not isinstance(item, str):
                read += 1
                yield i, item
                continue
            unreadable += 1
            if unreadable <= _NAMED:
                say(f"skipped {self._names[i]}: {item}")
        if unreadable:
            say(f"{unreadable} of {read + unreadable} images could not be read and were skipped")
        if wanted and not read:
            raise InputError("data", str(self.path), f"none of its {len(self)} images can be read; {self._first()}")

    def _read(self, i: int) -> tuple[Tensor, int] | str:
        """The item, or the reason why there is none."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on metadata
                return self.preparation(self._open(i)), self._labels[i]
        except InputError:
            raise
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes decoders fail in any way they like
            reason = _reason(error)
        if (self._names[i], reason) not in self.skipped:
            self.skipped.append((self._names[i], reason))
        return reason

    def _stack(self, items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        shapes = sorted({tuple(x.shape) for x, _ in items})
        if len(shapes) > 1:
            sizes = f"{shapes[0][1]}x{shapes[0][2]} and {shapes[1][1]}x{shapes[1][2]}"
            raise InputError("size", "not given", f"the images of {self.path} differ in size ({sizes}); give one")
        return torch.stack([x for x, _ in items]), torch.tensor([label for _, label in items])

    def _settle(self, preparation) -> Preparation:
        if isinstance(preparation, Preparation):
            return preparation
        if isinstance(preparation, Mapping):
            return Preparation.from_settings(preparation)
        first = self._first_images(8 if preparation is not None else 1)
        if preparation is not None:
            return Preparation.recognize(preparation, first)
        grey = first[0].mode in ("1", "L") or first[0].mode.startswith("I")
        return Preparation(mean=(0.0,), std=(1.0,), channels=1 if grey else 3)

    def _first_images(self, count: int) -> list[Any]:
        """Readable ones, spread over the whole set."""
        found: list[Any] = []
        for i in torch.linspace(0, len(self) - 1, min(len(self), 4 * count)).round().int().unique().tolist():
            try:
                found.append(self._open(i))
            except Exception:  # noqa: S112 - it is counted when its turn comes in batches()
                continue
            if len(found) == count:
                break
        if not found:
            raise InputError("data", str(self.path), "none of the images looked at can be read")
        return found

    def _first(self) -> str:
        return "the first, {}: {}".format(*self.skipped[0]) if self.skipped else "it is empty"


def open_images(
    path: str | Path,
    preparation: Preparation | Callable | Mapping[str, Any] | None = None,
    split: str | None = None,
    *,
    classes: Sequence[str] | None = None,
) -> ImageSet:
    """Images with their labels, from a folder, a tar, or idx files; nothing is unpacked to disk.

    Args:
        path: a folder or tar (.tar, .tar.gz, .tar.xz) of class/file, with or without an outer split folder; or of files
            alone, which have no labels; or a .csv of files and labels; or a folder with idx files, or one such file.
        preparation: settings, or a function from PIL image to tensor, which is recognised (see Preparation.recognize);
            None keeps the images' size, with values in 0..1.
        split: which split folder, or "train" or "test" of idx files, where there are several.
        classes: the order of the class numbers, such as a saved network's; sorted by name where not given.

    Raises:
        InputError: there is nothing there, no image, no such split, an empty class folder, a file cut short, ...
    """
    path = Path(path)
    if not path.exists():
        raise InputError("data", str(path), "does not exist")
    if path.is_dir():
        found = idx.find(path)
        if found:
            return _from_idx(idx.choose(path, found, split), preparation, classes)
        return _from_tree(files.read_folder(path), preparation, split, classes)
    if files.is_tar(path):
        return _from_tree(files.read_tar(path), preparation, split, classes)
    if split is not None and path.is_file():
        raise InputError("split", split, f"names a part of a folder, and {path} is one file")
    if idx.is_idx(path):
        return _from_idx(path, preparation, classes)
    if image_lists.is_list(path):
        listed, tree = image_lists.read(path, classes), files.Tree(path.parent)
        return ImageSet(path.parent, listed, partial(_open_file, tree, listed.names), preparation)
    rule = "must be a folder, a .tar, .tar.gz or .tar.xz, a .csv of files and labels, or an idx file of images"
    raise InputError("data", str(path), rule)


def _from_tree(tree: files.Tree, preparation, split, classes) -> ImageSet:
    found = files.arrange(tree, split, classes)
    return ImageSet(tree.path, found, partial(_open_file, tree, found.names), preparation)


def _from_idx(path: Path, preparation, classes) -> ImageSet:
    pixels = idx.read_images(path)
    labels = idx.read_labels(path, len(pixels))
    found = files.Files([f"{path.name}[{i}]" for i in range(len(pixels))], [-1] * len(pixels))
    if labels is not None:
        found.labels = labels.tolist()
        found.classes = list(classes) if classes is not None else [str(i) for i in range(max(found.labels) + 1)]
        if max(found.labels) >= len(found.classes):
            rule = f"has the label {max(found.labels)}, and the network's classes are {len(found.classes)}"
            raise InputError("data", str(path), rule)
    return ImageSet(path, found, partial(_open_pixels, pixels), preparation)


def _open_pixels(pixels, i: int):
    return _pillow().fromarray(pixels[i])


def _open_file(tree: files.Tree, names: list[str], i: int):
    image = _pillow().open(io.BytesIO(tree.read(names[i])))
    image.load()
    return image


def _pillow():
    return need("PIL.Image", "deploy", "to read images")


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "is not an image, whatever its name says"
    return first_line(error)
