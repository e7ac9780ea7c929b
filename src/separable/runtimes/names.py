"""The runtimes by name, and why one cannot be used here.

Adding one: its name in `NAMES`, what it needs in `why_not`, how it runs a network in `prepared.py`.
"""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from separable import _native
from separable.errors import InputError

NAMES = (
    "torch",
    "torch channels-last",
    "compile",
    "accelerate",
    "accelerate bfloat16",
    "onnxruntime",
    "openvino",
    "openvino default",
)
# OpenVINO's own choice of precision is bfloat16 on processors that multiply it.
FLOAT32 = tuple(name for name in NAMES if name not in ("accelerate bfloat16", "openvino default"))
_PIP = {"onnxruntime": "'separable[deploy]'", "openvino": "openvino"}


def threads_in_words(number: int) -> str:
    """
    >>> threads_in_words(1), threads_in_words(2)
    ('one thread', '2 threads')
    """
    return "one thread" if number == 1 else f"{number} threads"


def check_name(name: str) -> str:
    if name not in NAMES:
        raise InputError("runtime", name, f"must be one of: {', '.join(NAMES)}")
    return name


def why_not(name: str) -> str | None:
    """One sentence on why a runtime cannot be used here, or None where it can.

    Raises:
        InputError: no runtime has this name.

    >>> why_not("torch") is None
    True
    """
    package = check_name(name).split()[0]
    if package in _PIP and importlib.util.find_spec(package) is None:
        return f"{package} is not installed; add it with: pip install {_PIP[package]}"
    if package == "accelerate" and _native.missing:
        return f"there are no native kernels: {_native.missing}"
    if name == "accelerate bfloat16" and not _native.has_bfloat16():
        return f"{_native.isa()} kernels on this processor have no products of bfloat16 (AVX512-BF16)"
    return _why_not_compile() if name == "compile" else None


def _why_not_compile() -> str | None:
    """torch.compile writes C++ and compiles it against Python's own headers."""
    if not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))):
        return "torch.compile needs a C++ compiler, and there is no g++ or clang++"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "torch.compile needs Python's headers (Python.h); install python3-dev or what brings them here"
    return None
