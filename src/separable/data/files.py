"""Image files sorted into class folders, in a folder or in a tar, read without ever unpacking anything.

Laid out as class/file, split/class/file (split: train, val, test, ...), or files alone, which have no labels; nor do
those of a single folder, which tells nothing apart. Folders that only wrap such a layout are looked through; files at
any depth below a class folder belong to it.
"""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from separable.errors import InputError
from separable.progress import track

IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"))
_HELD_BYTES = 8 << 30  # images of a compressed tar, which has no random access, are held in memory


@dataclass
class Files:
    """Where the images are and what they show. `labels` index `classes`; -1 where nothing says."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Tree:
    """Every image and folder below a place, by its relative path, and how to read one."""

    path: Path
    images: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


@dataclass
class Tar(Tree):
    """Members are read from their place in the tar; those of a compressed one from memory."""

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    held: dict[str, bytes] = field(default_factory=dict)
    held_bytes: int = 0

    def read(self, name: str) -> bytes:
        if name in self.held:
            return self.held[name]
        offset, size = self.places[name]
        with open(self.path, "rb") as file:  # opened each time: safe in forked and spawned workers
            file.seek(offset)
            return file.read(size)


def is_tar(path: Path) -> bool:
    return path.name.lower().endswith(TARS)


def read_folder(path: Path) -> Tree:
    tree = Tree(path)
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if _hidden(name):
            continue
        if file.is_dir():
            tree.folders.add(name)
        elif PurePosixPath(name).suffix.lower() in IMAGES:
            tree.images.append(name)
    return tree


def read_tar(path: Path) -> Tar:
    tree = Tar(path)
    plain = path.name.lower().endswith(".tar")
    try:
        with tarfile.open(path, "r:" if plain else "r|*") as tar:
            for member in track(tar, f"reading {path.name}"):
                _add_member(tree, tar, member, plain)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("data", str(path), f"is no readable tar: {error or 'it ends too early'}") from None
    tree.images.sort()
    return tree


def _add_member(tree: Tar, tar: tarfile.TarFile, member: tarfile.TarInfo, plain: bool) -> None:
    name = str(PurePosixPath(member.name))
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        if PurePosixPath(name).suffix.lower() in IMAGES:
            tree.skipped.append((name, "lies outside the tar: its path is absolute or has a .."))
        return
    if _hidden(name):
        return
    if member.isdir():
        tree.folders.add(name)
    if PurePosixPath(name).suffix.lower() not in IMAGES or member.isdir():
        return
    if not member.isreg() or member.issparse():
        tree.skipped.append((name, "is a link or a sparse file in the tar"))
        return
    if name not in tree.places and name not in tree.held:  # a later member of the same name replaces the earlier
        tree.images.append(name)
    tree.folders.update(str(parent) for parent in PurePosixPath(name).parents if parent.name)
    if plain:
        tree.places[name] = (member.offset_data, member.size)
        return
    tree.held_bytes += member.size
    if tree.held_bytes > _HELD_BYTES:
        rule = f"holds over {_HELD_BYTES >> 30} GiB of images; decompress it to a plain .tar, which is read in place"
        raise InputError("data", str(tree.path), rule)
    opened = tar.extractfile(member)
    assert opened is not None
    tree.held[name] = opened.read()


def arrange(tree: Tree, split: str | None, classes: Sequence[str] | None) -> Files:
    """Which of the images belong to the split, and the class of each.

    Raises:
        InputError: there are no images, no such split, several splits and none is named, or a class without images.
    """
    path = str(tree.path)
    if not tree.images:
        raise InputError("data", path, f"holds no images (no {', '.join(sorted(IMAGES))}){_archives_in(tree.path)}")
    images = [PurePosixPath(name) for name in tree.images]
    depth = 0  # of the folders that only wrap
    while _is_wrapped(images, depth):
        depth += 1
    if _has_splits(images, depth):
        splits = sorted({name.parts[depth] for name in images if len(name.parts) > depth + 1})
        chosen = splits[0] if split is None and len(splits) == 1 else split
        if chosen not in splits:
            given = "not given" if split is None else split
            raise InputError("split", given, f"must be one of {', '.join(splits)}, the split folders of {path}")
        images = [name for name in images if len(name.parts) > depth + 1 and name.parts[depth] == chosen]
        depth += 1
    elif split is not None:
        raise InputError("split", split, f"{path} has no split folders")
    inside = images[0].parts[:depth]
    return _label(tree, images, inside, classes)


def _label(tree: Tree, images: list[PurePosixPath], inside: tuple[str, ...], classes: Sequence[str] | None) -> Files:
    depth = len(inside)
    files = Files(skipped=list(tree.skipped))
    folders = {
        parts[depth]
        for name in tree.folders
        if (parts := PurePosixPath(name).parts)[:depth] == inside and parts[depth:]
    }
    full = {name.parts[depth] for name in images if len(name.parts) > depth + 1}
    if not full or (len(folders) == 1 and classes is None):  # one folder tells nothing apart
        files.names = [str(name) for name in images]
        files.labels = [-1] * len(images)
        return files
    files.classes = list(classes) if classes is not None else sorted(folders)
    if classes is None and folders != full:
        empty = ", ".join(sorted(folders - full))
        raise InputError("data", str(tree.path), f"class folder {empty} holds no images; fill it or remove it")
    unknown = sorted(full - set(files.classes))
    if unknown:
        rule = f"has the class folder {', '.join(unknown)}, which is none of the network's {len(files.classes)} classes"
        raise InputError("data", str(tree.path), rule)
    index = {name: i for i, name in enumerate(files.classes)}
    for name in images:
        if len(name.parts) == depth + 1:
            files.skipped.append((str(name), "lies outside every class folder"))
            continue
        files.names.append(str(name))
        files.labels.append(index[name.parts[depth]])
    return files


def _is_wrapped(images: list[PurePosixPath], depth: int) -> bool:
    """All lie in one folder of one folder, which is not itself the only split there is."""
    tops = {name.parts[depth] for name in images}
    if min(len(name.parts) for name in images) < depth + 3 or len(tops) > 1:
        return False
    return tops.pop().lower() not in SPLITS


def _has_splits(images: list[PurePosixPath], depth: int) -> bool:
    """Some folder is called as splits are and holds folders, or all are called so and hold images without labels."""
    tops = {name.parts[depth].lower() for name in images if len(name.parts) > depth + 1}
    shallow = any(len(name.parts) == depth + 2 for name in images)
    return bool(tops) and (tops <= SPLITS if shallow else bool(tops & SPLITS))


def _hidden(name: str) -> bool:
    """Dot files, and what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _archives_in(path: Path) -> str:
    if not path.is_dir():
        return ""
    tars = sorted(file.name for file in path.iterdir() if is_tar(file))
    return f", but {', '.join(tars)}: name one of them" if tars else ""
