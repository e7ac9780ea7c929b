"""Images and labels in idx files, as MNIST and Fashion-MNIST come: a header of sizes, then one byte a pixel.

Source: LeCun, Cortes and Burges, "The MNIST database", file formats: magic 0, 0, 8 (unsigned byte), number of
dimensions, then each dimension as a big-endian 32-bit integer.
"""

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

from separable.errors import InputError, need

_AT_ONCE_BYTES = 1 << 20
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
            raise InputError("data", folder, f"holds {named[name].name} and {file.name}; name one of the files")
        named.setdefault(name, file)
    wanted = _SPLITS.get(split, split) if split is not None else None
    if wanted is None and len(named) == 1:
        return next(iter(named.values()))
    if wanted not in named:
        given = "not given" if split is None else split
        raise InputError("split", given, f"must be one of {', '.join(sorted(named))}, the idx files of {folder}")
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
        raise InputError("data", path, f"holds {len(labels)} labels for the {count} images of {images.name}")
    return labels


def _read(path: Path, dims: int):
    numpy = need("numpy", "deploy", "to read images")
    header_bytes = 4 + 4 * dims
    with _opened(path) as file:
        header = _up_to(file, header_bytes, path)
        if len(header) < header_bytes or header[:4] != bytes((0, 0, 8, dims)):
            raise InputError("data", path, f"does not begin as an idx file of bytes in {dims} dimensions")
        shape = struct.unpack(f">{dims}I", header[4:])
        contents = _up_to(file, math.prod(shape) + 1, path)  # one more shows a surplus; packed, it may have no end
    missing, said = math.prod(shape) - len(contents), " x ".join(map(str, shape))
    if missing:
        told = f"is {missing} bytes short: its header says" if missing > 0 else "is longer than its header says:"
        raise InputError("data", path, f"{told} {said}")
    if not shape[0]:
        raise InputError("data", path, "holds no images")
    return numpy.frombuffer(contents, numpy.uint8).reshape(shape)


def _opened(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """The file's contents, unpacked as they are read where it is packed, whatever its name says."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")


def _up_to(file: io.BufferedReader | gzip.GzipFile, count: int, path: Path) -> bytes:
    """As many of the next bytes as there are, at most `count`; a header may promise what no memory holds."""
    parts: list[bytes] = []
    try:
        while count and (part := file.read1(min(count, _AT_ONCE_BYTES))):
            parts.append(part)
            count -= len(part)
    except EOFError:
        pass  # cut short: the caller says by how much
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError("data", path, f"is damaged: {error}") from None
    return b"".join(parts)


def _same_file_packed(one: Path, other: Path) -> bool:
    return one.parent == other.parent and one.name.removesuffix(".gz") == other.name.removesuffix(".gz")
