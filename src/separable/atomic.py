"""Write results whole or not at all: beside their place first, renamed into it when everything is done.

A full disk, an error or a killed process never leaves a half-written result under the name that was asked for, and
never loses the one that stood there before. A kill can leave a hidden `.part-*` neighbour, which is safe to delete.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from separable.errors import InputError

_WRITING_STOPS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)  # disk full, file too large, quota, device


@contextmanager
def write_beside(path: str | Path, *, overwrite: bool = True, argument: str = "out") -> Iterator[Path]:
    """A path of the same suffix beside `path` to write the file to; it becomes `path` when the block ends well.

    Raises:
        InputError: `path` is a folder, exists while `overwrite` is false, or cannot be written (the disk is full, ...).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with write_beside(Path(folder) / "table.csv") as beside:
    ...         _ = beside.write_text("a,b")
    ...     [file.name for file in Path(folder).iterdir()]
    ['table.csv']
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(argument, path, "is a folder; name a file")
    if path.exists() and not overwrite:
        raise InputError(argument, path, "exists already; choose another name or allow overwriting")
    beside = _beside(path)
    with _told(argument, path, beside), _parents(path):
        try:
            yield beside
            _to_disk(beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def folder_beside(
    path: str | Path, *, overwrite: bool = False, mark: str = "model.json", argument: str = "out"
) -> Iterator[Path]:
    """An empty folder beside `path` to fill; it becomes `path` when the block ends well.

    `path` must not exist or must be empty, also when the block ends: of two that write at once the later is refused.
    With `overwrite`, a folder that holds the file `mark`, by which an earlier result is known, is replaced: moved
    aside, the new one moved in, the old one deleted.

    Raises:
        InputError: `path` is taken, or cannot be written.
    """
    path = Path(path).absolute()
    check_folder(path, overwrite=overwrite, mark=mark, argument=argument)
    beside = _beside(path)
    with _told(argument, path, beside), _parents(path):
        beside.mkdir()
        try:
            yield beside
            for file in beside.rglob("*"):
                if file.is_file():
                    _to_disk(file)
            check_folder(path, overwrite=overwrite, mark=mark, argument=argument)  # others may have written meanwhile
            try:
                _move_in(path, beside, overwrite)
            except OSError:
                check_folder(path, overwrite=overwrite, mark=mark, argument=argument)  # or in this very moment
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def remove_folder(path: str | Path) -> None:
    """Delete a folder, if it is there: gone under its name at once, whatever interrupts the deleting."""
    path = Path(path).absolute()
    if path.exists():
        old = _beside(path)
        path.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def check_folder(path: str | Path, *, overwrite: bool = False, mark: str = "model.json", argument: str = "out") -> None:
    """Refuse an output folder that is taken; called before long work, so that nothing is computed in vain."""
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InputError(argument, path, "must be a folder, or a name that is free")
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise InputError(argument, path, "is a folder that is not empty; choose another or allow overwriting")
    if not (path / mark).is_file():
        raise InputError(argument, path, f"holds no {mark}, so it is no earlier result and is not overwritten")


def _beside(path: Path) -> Path:
    return path.with_name(f".part-{secrets.token_hex(4)}-{path.name}")


def _move_in(path: Path, new: Path, overwrite: bool) -> None:
    """Without `overwrite` by renaming alone, which no folder that holds something gives way to."""
    if not overwrite or not path.exists():
        with suppress(OSError):  # goes only where it is empty; Windows renames onto nothing at all
            path.rmdir()
        new.rename(path)
        return
    old = path.with_name(f".part-{secrets.token_hex(4)}-old-{path.name}")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the folders that `path` lies in; those that were not there go again when the block fails."""
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # someone else has put something there meanwhile
                folder.rmdir()
        raise


def _to_disk(file: Path) -> None:
    """Renaming is only safe once the contents have left the system's buffers."""
    with open(file, "r+b") as opened:  # Windows syncs only what may be written
        os.fsync(opened.fileno())


@contextmanager
def _told(argument: str, path: Path, beside: Path) -> Iterator[None]:
    """An error of the file system about this result, as the sentence a user can act on; other errors pass."""
    try:
        yield
    except OSError as error:
        if not _is_about(error, path, beside):
            raise
        reason = error.strerror or str(error)
        raise InputError(argument, path, f"could not be written: {reason}; nothing was left behind") from error
    except InputError as error:  # of a result written inside this one, which knows its passing name alone
        inside = Path(error.value) if isinstance(error.value, (str, os.PathLike)) else None
        if inside is None or not inside.absolute().is_relative_to(beside.absolute()):
            raise
        raise InputError(argument, path / inside.absolute().relative_to(beside.absolute()), error.rule) from error


def _is_about(error: OSError, path: Path, beside: Path) -> bool:
    """It names this result or a folder it lies in; writing itself names no file, and fails for few reasons."""
    if error.filename is None:
        return error.errno in _WRITING_STOPS
    file = Path(str(error.filename)).absolute()
    path = path.absolute()
    return file in (path, *path.parents) or file.is_relative_to(beside.absolute())
