"""Sound files from a folder, a tar or one file, as float32 in memory: path in, samples out, every bad file named.

What a file shows stands in its path: `names` is a regular expression with the named groups `label` and whatever else
tells files apart (`speaker`, `take`, `split`), by which `Clips.divide` makes training, validation and test sets.
soundfile reads the samples; several channels become their mean; another sampling rate is resampled and counted.
"""

import io
import re
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from separable.data.files import is_tar
from separable.data.resample import resample
from separable.errors import InputError
from separable.progress import say, track

SOUNDS = frozenset((".wav", ".flac", ".ogg"))
FOLDERS = r"(?P<label>[^/]+)/[^/]+"  # label/file.wav
_NAMED = 5  # unusable files named while the work goes on; `skipped` names all


@dataclass
class Clip:
    """One file. samples: float32 [n] in -1..1. parts: what `names` found in its path, the label among them."""

    name: str
    samples: Tensor
    parts: dict[str, str] = field(default_factory=dict)


@dataclass
class Clips:
    """Files of one sampling rate (per second). `resampled` counts those that came in another, by that rate."""

    path: Path
    rate: int
    clips: list[Clip]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    resampled: dict[int, int] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Every label there is, sorted."""
        return sorted({clip.parts["label"] for clip in self.clips if "label" in clip.parts})

    def divide(self, **wanted: str) -> dict[str, list[Clip]]:
        """The clips that meet each condition, in the order of the conditions; those that meet none as "rest".

        A condition is `part=value`, `part=value,value` or, for numbers, `part=first-last`, as in `test="take=0-4"`; or
        a share, `10%`, which a clip's name decides, so that it stays where it is when others come.

        Raises:
            InputError: a condition is none, speaks of a part that the paths do not have, or is met by no clip.
        """
        found: dict[str, list[Clip]] = {name: [] for name in (*wanted, "rest")}
        tests, taken = {}, 0
        for name, text in wanted.items():
            share = re.fullmatch(r"(\d+)%", text)
            tests[name] = _share(taken, taken + int(share[1])) if share else self._condition(name, text)
            taken += int(share[1]) if share else 0
        for clip in self.clips:
            found[next((name for name, test in tests.items() if test(clip)), "rest")].append(clip)
        for name, text in wanted.items():
            if not found[name]:
                raise InputError(name, text, f"no sound of {self.path} is so")
        return found

    def _condition(self, name: str, text: str) -> Callable[[Clip], bool]:
        part, given, values = text.partition("=")
        known = sorted({key for clip in self.clips for key in clip.parts})
        if not given or part not in known:
            parts = ", ".join(known) or "(the names have none)"
            raise InputError(name, text, f"must be a share such as 10%, or PART=VALUES with PART one of {parts}")
        ends = re.fullmatch(r"(\d+)-(\d+)", values)
        if ends:
            first, last = int(ends[1]), int(ends[2])
            return lambda clip: clip.parts.get(part, "").isdecimal() and first <= int(clip.parts[part]) <= last
        chosen = set(values.split(","))
        return lambda clip: clip.parts.get(part) in chosen


def _share(first: int, last: int) -> Callable[[Clip], bool]:
    """Whose names fall between two percentages: shares of several parts lie beside each other."""
    return lambda clip: first <= zlib.crc32(clip.name.encode()) % 100 < last


def read(path: str | Path, names: str | None = FOLDERS, *, rate: int | None = None, strict: bool = False) -> Clips:
    """Read every sound below `path`: a folder, a .tar, .tar.gz, .tar.xz, or one file.

    Args:
        names: what the end of a path says, without the suffix, such as "(?P<label>[0-9])_(?P<speaker>[a-z]+)"; a file
            whose path does not fit is skipped like a damaged one. None reads sounds without labels.
        rate: samples a second of the result; without it, the rate most of the files have.
        strict: refuse a set with a file that cannot be used, rather than skip the file.

    Raises:
        InputError: nothing can be read, `names` is no such expression, or, with `strict`, a file cannot be used.
    """
    path, pattern = Path(path), _pattern(names)
    if not path.exists():
        raise InputError("data", str(path), "does not exist")
    read_clips: list[tuple[Clip, int]] = []
    skipped: list[tuple[str, str]] = []
    for name, content in track(_contents(path), f"reading {path.name}"):
        outcome = content if isinstance(content, str) else _decode(name, content, pattern)
        if isinstance(outcome, str):
            if strict:
                raise InputError("data", f"{path}/{name}", outcome)
            skipped.append((name, outcome))
            if len(skipped) <= _NAMED:
                say(f"skipped {name}: {outcome}")
            continue
        read_clips.append(outcome)
    if not read_clips:
        reason = f"; {skipped[0][0]} {skipped[0][1]}" if skipped else f" (no {', '.join(sorted(SOUNDS))})"
        raise InputError("data", str(path), f"holds no sound that can be used{reason}")
    if skipped:
        say(f"{len(skipped)} of {len(skipped) + len(read_clips)} sounds could not be used and were skipped")
    return _at_one_rate(path, sorted(read_clips, key=lambda item: item[0].name), skipped, rate)


def pieces(path: str | Path, rate: int, seconds: float = 1.0) -> Iterator[Tensor]:
    """One file, however long, in pieces of about `seconds`, float32 [n] in -1..1; of another rate, it is read whole.

    Raises:
        InputError: the file is missing or cannot be read to its end.
    """
    path = Path(path)
    soundfile = _soundfile()
    if not path.is_file():
        raise InputError("data", str(path), "is no sound file")
    try:
        with soundfile.SoundFile(path) as file:
            if file.samplerate == rate:
                for block in file.blocks(max(1, round(seconds * rate)), dtype="float32", always_2d=True):
                    yield torch.from_numpy(block).mean(1)
                return
    except (soundfile.SoundFileError, RuntimeError) as error:
        reason = str(error).splitlines()[0].split(">: ")[-1]
        raise InputError("data", str(path), f"cannot be decoded: {reason}") from None
    yield from read(path, None, rate=rate).clips[0].samples.split(max(1, round(seconds * rate)))


def _pattern(names: str | None) -> re.Pattern | None:
    if names is None:
        return None
    try:
        pattern = re.compile(f"(?:^|.*/)(?:{names})")
    except re.error as error:
        raise InputError("names", names, f"is no regular expression: {error}") from None
    if "label" not in pattern.groupindex:
        raise InputError("names", names, "must have a group (?P<label>...), which says what a sound is")
    return pattern


def _contents(path: Path) -> Iterator[tuple[str, bytes | str]]:
    """(name, bytes) of each sound, or (name, why there are none)."""
    if path.is_file() and is_tar(path):
        yield from _members(path)
    elif path.is_file():
        yield path.name, path.read_bytes()
    else:
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if not _wanted(name) or not file.is_file():
                continue
            try:
                yield name, file.read_bytes()
            except OSError as error:
                yield name, f"cannot be read: {error.strerror}"


def _members(path: Path) -> Iterator[tuple[str, bytes | str]]:
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                if not _wanted(member.name) or member.isdir():
                    continue
                opened = tar.extractfile(member) if member.isreg() else None
                yield member.name, opened.read() if opened else "is a link in the tar"
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError("data", str(path), f"is no readable tar: {error or 'it ends too early'}") from None


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SOUNDS and not any(p.startswith(".") or p == "__MACOSX" for p in path.parts)


def _decode(name: str, content: bytes, pattern: re.Pattern | None) -> tuple[Clip, int] | str:
    """The clip and its sampling rate, or why there is none."""
    soundfile = _soundfile()
    found = pattern.fullmatch(str(PurePosixPath(name).with_suffix(""))) if pattern else None
    if pattern and not found:
        return "has a path that does not fit `names`"
    if not content:
        return "is empty (0 bytes)"
    if _is_cut_short(content):
        return "is cut short: its header promises more than there is"
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, ValueError, MemoryError) as error:
        return f"cannot be decoded: {str(error).splitlines()[0].split('>: ')[-1]}"
    mono = torch.from_numpy(samples).mean(1)  # [n]
    if not len(mono):
        return "has no samples"
    if not bool(mono.isfinite().all()):
        return "has samples that are no numbers"
    parts = {key: value for key, value in found.groupdict().items() if value is not None} if found else {}
    return Clip(name, mono, parts), rate


def _is_cut_short(content: bytes) -> bool:
    """A RIFF header with a length beyond the end; 0 and 2^32-1 are written by recorders that did not know it."""
    if content[:4] != b"RIFF" or len(content) < 8:
        return False
    promised = struct.unpack("<I", content[4:8])[0]
    return promised not in (0, 0xFFFFFFFF) and promised + 8 > len(content) + 1  # 1: a missing byte of padding


def _at_one_rate(
    path: Path, read_clips: list[tuple[Clip, int]], skipped: list[tuple[str, str]], rate: int | None
) -> Clips:
    rates = Counter(found for _, found in read_clips)
    wanted = rate if rate is not None else rates.most_common(1)[0][0]
    if wanted < 1:
        raise InputError("rate", wanted, "must be at least 1 sample a second")
    others = {found: count for found, count in sorted(rates.items()) if found != wanted}
    if others:
        told = ", ".join(f"{count} of {found} Hz" for found, count in others.items())
        say(f"resampled to {wanted} Hz: {told}")
    for clip, found in read_clips:
        clip.samples = resample(clip.samples, found, wanted)
    return Clips(path, wanted, [clip for clip, _ in read_clips], skipped, others)


def _soundfile() -> Any:
    try:
        import soundfile
    except (ModuleNotFoundError, OSError) as error:  # OSError: the package without the library it wraps
        raise InputError(
            "package", "soundfile", f"is needed to read sound ({error}); add it with: pip install 'separable[recipes]'"
        ) from None
    return soundfile
