"""What is looked at before anything is read or trained: the settings, the machine, the folder, the run to go on with.

A run's settings are kept beside its checkpoints; only what leaves network, data and schedule as they are may change
when it goes on.
"""

import json
import tempfile
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from separable import atomic, store
from separable.errors import InputError
from separable.recipes import rules, running
from separable.recipes.running import Running, world

MAY_CHANGE = ("out", "resume", "accelerator", "checkpoint_every", "patience", "strict", "test", "rival")


def check(settings: Running) -> None:
    """Refuse what cannot end well, each recipe's first line.

    Raises:
        InputError: a setting breaks its rule or wants a GPU where there is none; `out` cannot be written to, holds an
            earlier run, or is to go on with other settings than it began with.
    """
    rules.check(settings)
    for name in ("init", "teacher"):
        if getattr(settings, name, None):
            setattr(settings, name, store.network_folder(Path(getattr(settings, name))))
    _check_machine(settings)
    if not world()[0]:  # one process tries it out
        _check_out(Path(settings.out))
    running.check(settings)
    if settings.resume:
        _check_same(settings)


def keep(settings: Running) -> None:
    """Write down the settings of a run that begins, for `check` when it goes on."""
    if world()[0] or _last(settings).exists():
        return
    with atomic.write_beside(_kept(settings)) as beside:
        beside.write_text(json.dumps(_plain(settings), indent=1), encoding="utf-8")


def _last(settings: Running) -> Path:
    return Path(settings.out) / "checkpoints" / "last.ckpt"


def _kept(settings: Running) -> Path:
    return _last(settings).with_name("settings.json")


def _plain(settings: Running) -> dict[str, Any]:
    """The settings as JSON gives them back; of what lies on the disk the last name alone, for it may have moved."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path) or (isinstance(value, str) and value and _is_there(value)):
            return Path(value).name
        return [*value] if isinstance(value, (tuple, list)) else value

    return {field.name: plain(getattr(settings, field.name)) for field in fields(settings)}


def _is_there(place: str) -> bool:
    try:
        return Path(place).exists()
    except (OSError, ValueError):  # no name of a file, whatever it is
        return False


def _check_same(settings: Running) -> None:
    file = _kept(settings)
    if not (_last(settings).exists() and file.is_file()):  # nothing to go on with, or of a run before this was kept
        return
    earlier = json.loads(file.read_text(encoding="utf-8"))
    for name, value in _plain(settings).items():
        if name in earlier and name not in MAY_CHANGE and value != earlier[name]:
            shown, was = (",".join(map(str, v)) if isinstance(v, list) else v for v in (value, earlier[name]))
            rule = f"the run in {settings.out} has {was}; go on with the same, or choose another out"
            raise InputError(name, shown, rule)


def _check_machine(settings: Running) -> None:
    gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if settings.accelerator in ("gpu", "cuda") and not gpus:
        raise InputError("accelerator", settings.accelerator, "there is none here that torch can use; leave it away")
    on_gpu = settings.accelerator != "cpu" and gpus
    if settings.precision == "16-mixed" and not on_gpu:
        raise InputError("precision", settings.precision, "is for a GPU; a processor takes bf16-mixed")
    if on_gpu and settings.devices > gpus:
        raise InputError("devices", settings.devices, f"are more than the {gpus} here")


def _check_out(out: Path) -> None:
    """Write something there and take it away again; what had to be made for it goes too."""
    if out.exists() and not out.is_dir():
        raise InputError("out", out, "must be a folder, or a name that is free")
    made = [folder for folder in (out.absolute(), *out.absolute().parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError("out", out, f"cannot be written to: {error.strerror or error}") from None
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
