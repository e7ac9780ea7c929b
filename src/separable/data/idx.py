"""Images and labels in idx files, as MNIST and Fashion-MNIST come: a header of sizes, then one byte a pixel.

Source: LeCun, Cortes and Burges, "The MNIST database", file formats: magic 0, 0, 8 (unsigned byte), number of
dimensions, then each dimension as a big-endian 32-bit integer.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

from separable.errors import InputError

_IMAGES, _LABELS = "-images", "-labels"
_SPLITS = {"train": "train", "t10k": "test"}  # what the files are called, what people call it


def is_idx(path: Path) -> bool:
    """A file of images in this format, by its name."""
    name = path.name.lower()
    return path.is_file() and _IMAGES in name and "idx3" in name


def find(folder: Path) -> list[Path]:
    """The image files in this format in a folder or below it."""
    return sorted(file for file in folder.rglob(f"*{_IMAGES}*") if is_idx(file))


def choose(folder: Path, files: list[Path], split: str | None) -> Path:
    """The file of one split; the files of MNIST are called train and t10k, the second of which is also "test"."""
    named: dict[str, Path] = {}
    for file in files:
        prefix = file.name[: file.name.lower().index(_IMAGES)]
        name = _SPLITS.get(prefix, prefix)
        if name in named and not _same_file_packed(named[name], file):
            raise InputError("data", str(folder), f"holds {named[name].name} and {file.name}; name one of the files")
        named.setdefault(name, file)
    wanted = _SPLITS.get(split, split) if split is not None else None
    if wanted is None and len(named) == 1:
        return next(iter(named.values()))
    if wanted not in named:
        raise InputError("split", split, f"must be one of {', '.join(sorted(named))}, the idx files of {folder}")
    return named[wanted]


def read_images(path: Path):
    """uint8 array [N, H, W]."""
    return _read(path, 3)


def read_labels(images: Path, count: int):
    """uint8 array [N] from the file beside `images`; None where there is no such file."""
    name = images.name.replace(_IMAGES, _LABELS).replace("idx3", "idx1")
    plain = name.removesuffix(".gz")
    path = next((p for p in (images.with_name(n) for n in (name, plain, plain + ".gz")) if p.is_file()), None)
    if path is None:
        return None
    labels = _read(path, 1)
    if len(labels) != count:
        raise InputError("data", str(path), f"holds {len(labels)} labels for the {count} images of {images.name}")
    return labels


def _read(path: Path, dims: int):
    try:
        import numpy
    except ModuleNotFoundError:
        raise InputError("package", "numpy", "is needed to read images: pip install 'separable[deploy]'") from None
    contents = _bytes(path)
    if len(contents) < 4 + 4 * dims or contents[:4] != bytes((0, 0, 8, dims)):
        raise InputError("data", str(path), f"does not begin as an idx file of bytes in {dims} dimensions")
    shape = struct.unpack(f">{dims}I", contents[4 : 4 + 4 * dims])
    missing = math.prod(shape) - (len(contents) - 4 - 4 * dims)
    if missing:
        told = f"is {missing} bytes short" if missing > 0 else f"has {-missing} bytes too many"
        raise InputError("data", str(path), f"{told}: its header says {' x '.join(map(str, shape))}")
    if not shape[0]:
        raise InputError("data", str(path), "holds no images")
    return numpy.frombuffer(contents, numpy.uint8, offset=4 + 4 * dims).reshape(shape)


def _bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        contents = file.read()
    if contents[:2] != b"\x1f\x8b":
        return contents
    unpacked, stream = b"", zlib.decompressobj(wbits=31)
    try:
        return gzip.decompress(contents)
    except EOFError:
        unpacked = stream.decompress(contents)  # what there is, so that the error can say how much is missing
        return unpacked
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError("data", str(path), f"is damaged: {error}") from None


def _same_file_packed(one: Path, other: Path) -> bool:
    return one.parent == other.parent and one.name.removesuffix(".gz") == other.name.removesuffix(".gz")
