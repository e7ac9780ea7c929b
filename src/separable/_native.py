"""The library of native CPU kernels: whether it is there, why not, what runs; and torch's handle of our operators.

    SEPARABLE_NATIVE=0            runs without it; a path names another file
    SEPARABLE_ISA=avx2            runs a lower instruction set than the processor's best

The file is made by setup.py from csrc/. Without it every operation runs torch's own: same results, slower.
"""

import ctypes
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import forward_ad

from separable.errors import InputError

# Schemas stand beside each function in `functional`; the handle is kept, for dropping it would unregister them.
operators = torch.library.Library("separable", "DEF")

path: Path | None = None  # of the library that runs, or None
missing = ""  # why there is none
_library: ctypes.CDLL | None = None
_running: str | None = None  # the instruction set, kept here so that asking is free in a captured graph
_standard_only = ContextVar("standard_only", default=False)
_apart: ContextVar["Apart | None"] = ContextVar("apart", default=None)


def load() -> None:
    """Load the library once the schemas are defined; what stands in the way is kept in `missing`, and said once."""
    global path, missing, _library, _running
    wanted = os.environ.get("SEPARABLE_NATIVE", "")
    if wanted == "0":
        missing = "switched off by SEPARABLE_NATIVE=0"
        return
    name = "libseparable.dylib" if sys.platform == "darwin" else "libseparable.so"
    named = wanted not in ("", "1")
    file = Path(wanted) if named else Path(__file__).with_name(name)
    missing = f"SEPARABLE_NATIVE names {file}, which is not there" if named and not file.exists() else _open(file)
    if missing:
        warnings.warn(f"separable runs without its native kernels, slower: {missing}", stacklevel=2)
        return
    assert _library is not None
    path = file
    _library.sep_isa_name.restype = ctypes.c_char_p
    if _library.sep_isa() < 0:
        asked = os.environ.get("SEPARABLE_ISA")
        raise InputError("SEPARABLE_ISA", asked, f"must be one of {', '.join(isas())} here, or unset")
    _running = _name(_library.sep_isa())


def _open(file: Path) -> str:
    """Load `file`; what stands in the way, or nothing."""
    global _library
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    how = "run `pip install --no-build-isolation .` in a checkout"
    if not file.exists():
        compiler = os.environ.get("CXX") or any(map(shutil.which, ("g++", "c++", "clang++")))  # as setup.py does
        first = "" if compiler else "install a C++ compiler (there is no g++, c++ or clang++), then "
        return f"{file.name} was not built: {first}{how}"
    if version < (2, 10):
        return f"{file.name} needs torch 2.10 or newer, and this is {torch.__version__}"
    try:
        torch.ops.load_library(str(file))
        _library = ctypes.CDLL(str(file))
    except OSError as error:
        return f"{file.name} does not load ({error}): {how}"
    return ""


def obstacle() -> str:
    """Why no native operator may run at this moment, whatever its arguments; empty where it may."""
    return missing or followed()


def followed() -> str:
    """What follows or transforms the computation at this moment and needs torch's own operators; empty if nothing.

    Exported and traced graphs hold standard operators only. Forward-mode AD would find no formula and give zeros
    without a word; functorch's transforms want rules that only torch's own operators have.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return "an exported or traced graph holds standard operators only"
    if not torch.compiler.is_compiling() and _standard_only.get():  # dynamo cannot trace the variable
        return "a network that is being followed shows standard operators only"
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return "forward-mode derivatives and functorch's transforms go through torch's own operators"
    return ""


@contextmanager
def standard_operators() -> Iterator[None]:
    """Run torch's own operators alone while this is open: what follows a network knows them and no others."""
    token = _standard_only.set(True)
    try:
        yield
    finally:
        _standard_only.reset(token)


@dataclass
class Apart:
    """Whether anything ran in parts that would have run as one."""

    happened: bool = False


@contextmanager
def apart() -> Iterator[Apart]:
    """Run in parts, while this is open, what would run as one: the parts' own times add up to such a pass."""
    found = Apart()
    token = _apart.set(found)
    try:
        yield found
    finally:
        _apart.reset(token)


def keeps_apart() -> bool:
    """Asked where parts are about to run as one: True where someone looks at them one by one, as a profile does."""
    if torch.compiler.is_compiling():
        return False
    found = _apart.get()
    if found is not None:
        found.happened = True
    return found is not None or torch._C._len_torch_dispatch_stack() > 0


def plain() -> bool:
    """True in eager mode with nothing that follows, transforms or watches: a call may take the shortest way."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    modes = torch._C._len_torch_dispatch_stack() + torch._C._len_torch_function_stack()
    return modes == 0 and _apart.get() is None and not followed()


def isas() -> list[str]:
    """Instruction sets of the library that this processor runs, best first; none without the library."""
    if _library is None:
        return []
    return [_name(i) for i in range(_library.sep_isa_count()) if _library.sep_isa_supported(i)]


def isa() -> str | None:
    """The instruction set that runs, or None without the library."""
    return _running


def lanes() -> int:
    """Floats in a vector of the instruction set that runs; 0 without the library."""
    return {"avx512": 16, "avx2": 8, "neon": 4, "baseline": 4}.get(_running or "", 0)


def has_bfloat16() -> bool:
    """Whether kernels that run now multiply bfloat16: AVX-512 on a processor with AVX512-BF16."""
    return _library is not None and bool(_library.sep_has_bf16())


def has_matrix_tiles() -> bool:
    """Whether they do so by matrix tiles, which the processor has (AMX) and the system grants."""
    return _library is not None and bool(_library.sep_has_bf16_tiles())


@contextmanager
def force(name: str) -> Iterator[None]:
    """Run the kernels of another instruction set, in this whole process, while this is open.

    Raises:
        InputError: this processor or this build does not have it.
    """
    if _library is None or name not in isas():
        raise InputError("isa", name, f"must be one of {', '.join(isas()) or 'none: ' + missing}")
    global _running
    before, numbers = _library.sep_isa(), {_name(i): i for i in range(_library.sep_isa_count())}
    _library.sep_isa_force(numbers[name])
    _running = name
    try:
        yield
    finally:
        _library.sep_isa_force(before)
        _running = _name(before)


def _name(isa: int) -> str:
    assert _library is not None
    return _library.sep_isa_name(isa).decode()


load()
