"""Milliseconds of several ways to do one thing, taken in turn so that a noisy moment hits all of them alike."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from separable.errors import InputError


def interleaved_ms(calls: dict[str, Callable[[], object]], rounds: int = 60, warmup: int = 10) -> dict[str, float]:
    """The median time of each call, in milliseconds."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warmup + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= warmup:
                taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def onnx_call(file: Path, example: Tensor, threads: int) -> Callable[[], object]:
    """A call that runs an ONNX file in ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError("onnxruntime", "missing", "pip install 'separable[deploy]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: example.numpy()}
    return lambda: session.run(None, inputs)
