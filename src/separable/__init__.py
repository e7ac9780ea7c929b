"""Depthwise separable convolution that delivers in practice what its arithmetic promises.

Names only, resolved when first used (PEP 562): `import separable` does not import torch.
"""
# ruff: noqa: F401 - the imports under TYPE_CHECKING are the same names for type checkers; tests/test_import.py compares

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "DepthwiseConv1d": "layers",
    "DepthwiseConv2d": "layers",
    "DepthwiseConv3d": "layers",
    "SeparableConv1d": "layers",
    "SeparableConv2d": "layers",
    "SeparableConv3d": "layers",
    "SeparableConvTranspose1d": "layers",
    "SeparableConvTranspose2d": "layers",
    "SeparableConvTranspose3d": "layers",
    "StackedConv2d": "layers",
    "GatedSeparableConv2d": "layers",
    "accelerate": "acceleration",
    "convert": "conversion",
    "distill": "conversion",
    "save": "store",
    "load": "store",
    "export_onnx": "export",
    "InputError": "errors",
}
_ROOMS = [
    "functional",
    "layers",
    "models",
    "cost",
    "conversion",
    "acceleration",
    "data",
    "report",
    "runtimes",
    "store",
    "export",
    "errors",
    "progress",
]

__all__ = ["__version__", *sorted(_HOME), *sorted(_ROOMS)]  # noqa: PLE0604 - all of them strings

if TYPE_CHECKING:
    from separable import (
        acceleration,
        conversion,
        cost,
        data,
        errors,
        export,
        functional,
        layers,
        models,
        progress,
        report,
        runtimes,
        store,
    )
    from separable.acceleration import accelerate
    from separable.conversion import convert
    from separable.conversion.distill import distill
    from separable.errors import InputError
    from separable.export import export_onnx
    from separable.layers import (
        DepthwiseConv1d,
        DepthwiseConv2d,
        DepthwiseConv3d,
        GatedSeparableConv2d,
        SeparableConv1d,
        SeparableConv2d,
        SeparableConv3d,
        SeparableConvTranspose1d,
        SeparableConvTranspose2d,
        SeparableConvTranspose3d,
        StackedConv2d,
    )
    from separable.store import load, save


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"separable.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'separable' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"separable.{_HOME[name]}"), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__():
    return sorted(__all__)
