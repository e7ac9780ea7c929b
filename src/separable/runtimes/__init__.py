"""A network in each runtime that can run it here: torch in both layouts, compiled, accelerated, and over ONNX.

`prepare` gives one call of one network in one runtime.
"""

from separable.runtimes.names import FLOAT32, NAMES, why_not
from separable.runtimes.prepared import prepare

__all__ = ["FLOAT32", "NAMES", "prepare", "why_not"]
