"""Files as they lie: unpacked as read where the name ends in .xz or .gz, what is wrong told in one sentence."""

import gzip
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from separable.errors import InputError


@contextmanager
def open_packed(path: Path, argument: str = "file") -> Iterator[IO[bytes]]:
    """A file's bytes, to read inside the block.

    Raises:
        InputError: `argument` names a file that is not there, cannot be read, or is packed and cut short or damaged.
    """
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:  # type: ignore[operator]
            yield file
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(argument, str(path), f"cannot be unpacked: {error}") from None
    except OSError as error:
        raise InputError(argument, str(path), f"cannot be read: {error.strerror or error}") from None


def lines_of(file: IO[bytes], path: Path, argument: str = "file") -> Iterator[tuple[int, str]]:
    """Numbered lines of UTF-8, without their ends; a mark at the beginning is left away.

    Raises:
        InputError: a line is not UTF-8.
    """
    for number, raw in enumerate(file, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            rule = f"line {number} is not UTF-8 (byte {error.object[error.start]:#x}); convert it, e.g. with iconv"
            raise InputError(argument, str(path), rule) from None
        yield number, line.rstrip("\r\n")
