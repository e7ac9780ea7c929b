"""Labelled images of one size as bytes, for work that goes over them many times; in memory where they fit.

Every image is read once at first, whatever happens later, so that the ones that cannot be used are known, named and
left out before the work begins.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from separable.data.images import ImageSet
from separable.errors import InputError
from separable.progress import say

HELD_BYTES = 4 << 30
_THREADS = 8  # decoders release the interpreter


class Pixels:
    """Images whose values are 0 ... 255 and their labels; `take` gives any of them, in any order.

    Args:
        images: with labels, and a preparation that leaves values in 0..1 (mean 0, std 1), three channels.
        channels: 1 or 3; 0 for one where every image is grey, else three. Grey images among colour ones are counted.
        strict: refuse images of which one cannot be used, rather than leave it out.
        held_bytes: larger sets are read again each time.

    Attributes:
        labels: int64 [N].
        shape: (C, H, W).
        grey: how many of the images have no colour.
        skipped: (name, reason) of what could not be used.
        empty: classes that no readable image shows.

    Raises:
        InputError: no labels; sizes that differ; no readable image, or, where strict, one that is not.
    """

    def __init__(self, images: ImageSet, channels: int = 0, strict: bool = False, held_bytes: int = HELD_BYTES):
        images.require_labels()
        self.path, self.classes, self._set = images.path, images.classes, images
        parts: list[Tensor] = []
        labels: list[Tensor] = []
        grey, size, fits = 0, 0, True
        for batch, known in images.batches(256, description=f"reading {images.path}"):
            part = to_bytes(batch)  # [256, 3, H, W]
            grey += int(is_grey(part).sum())
            size += part.numel()
            labels.append(known)
            self._check_sizes(parts[0] if parts else part, part)
            fits = fits and size <= held_bytes
            parts = [*parts, part] if fits else [part]
        self.skipped, self.labels = list(images.skipped), torch.cat(labels)
        if strict and self.skipped:
            name, reason = self.skipped[0]
            raise InputError("data", str(self.path), f"{len(self.skipped)} cannot be used, the first {name}: {reason}")
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        self.empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        self.grey = grey
        channels = channels or (1 if grey == len(self.labels) else 3)
        if channels == 3 and 0 < grey < len(self.labels):
            say(f"{grey} of {len(self.labels)} images of {self.path} are grey; they count as colour without colour")
        self.shape = (channels, *parts[0].shape[2:])
        self._held = self._fitted(torch.cat(parts)) if fits else None  # [N, C, H, W]
        bad = {name for name, _ in self.skipped}
        self._places = [] if fits else [i for i, name in enumerate(images.names) if name not in bad]

    def __len__(self) -> int:
        return len(self.labels)

    def __deepcopy__(self, memo: dict) -> "Pixels":
        """Itself: it is only read, and whoever copies a module that holds it wants no second copy of the images."""
        return self

    def take(self, numbers: Tensor) -> Tensor:
        """uint8 [n, C, H, W] of the images `numbers` [n]."""
        if self._held is not None:
            return self._held[numbers]
        with ThreadPoolExecutor(_THREADS) as readers:
            read = list(readers.map(lambda n: self._set[self._places[n]][0], numbers.tolist()))
        return self._fitted(to_bytes(torch.stack(read)))

    def _fitted(self, images: Tensor) -> Tensor:
        if self.shape[0] == images.shape[1]:
            return images
        if bool(is_grey(images).all()):
            return images[:, :1].contiguous()
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R 601, as Preparation has it
        return (images.float() * weights).sum(1, keepdim=True).round().to(torch.uint8)

    def _check_sizes(self, first: Tensor, part: Tensor) -> None:
        if first.shape[1:] != part.shape[1:]:
            sizes = " and ".join("x".join(map(str, s.shape[2:])) for s in (first, part))
            raise InputError("size", "not given", f"the images of {self.path} differ in size ({sizes}); give one")


def to_bytes(images: Tensor) -> Tensor:
    """Values 0..1 as the bytes they were: [N, C, H, W] uint8."""
    return (images * 255).round_().to(torch.uint8)


def is_grey(images: Tensor) -> Tensor:
    """bool [N]: whether all channels of an image are equal."""
    return (images == images[:, :1]).flatten(1).all(1)
