"""A network in each runtime that can run it here: torch in both layouts, compiled, accelerated, and over ONNX.

`prepare` gives one call of one network in one runtime; `compare` puts networks side by side in all of them;
`peak_bytes` says how much memory one takes.
"""

from separable.runtimes.comparison import Comparison, Timed, choose, compare, relative_error, table_of, versions
from separable.runtimes.memory import peak_bytes
from separable.runtimes.names import FLOAT32, NAMES, threads_in_words, why_not
from separable.runtimes.prepared import prepare, torch_threads

__all__ = [
    "FLOAT32",
    "NAMES",
    "Comparison",
    "Timed",
    "choose",
    "compare",
    "peak_bytes",
    "prepare",
    "relative_error",
    "table_of",
    "threads_in_words",
    "torch_threads",
    "versions",
    "why_not",
]
