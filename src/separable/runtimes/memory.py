"""How much memory a network needs to run in a runtime: measured in a process that does nothing else.

The process is forked from one in which no other thread runs, so that it starts with torch loaded and nothing else.
Linux counts the resident memory of a process and keeps its peak; elsewhere nothing is said.
"""

import ctypes
import gc
import os
import select
import signal
import sys
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path

from torch import nn

from separable.inputs import Example
from separable.runtimes.names import why_not
from separable.runtimes.prepared import Case, torch_threads

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LONGEST_S = 300.0
_OWN_COPY = ("torch channels-last", "compile", "onnxruntime", "openvino", "openvino default")


def peak_bytes(name: str, model: nn.Module, inputs: Example, threads: int | None = None) -> int | None:
    """What the network adds to the resident memory of a process that has torch loaded, at most, while it runs.

    That is its weights in the runtime's form, what stands between its layers, the runtime itself, and its threads; what
    only preparing it took is given back before.

    Returns:
        Bytes, or None where that cannot be told: not on Linux, in a process in which other threads run (which cannot be
        forked with any certainty), or where the network cannot be run.
    """
    if why_not(name) is not None or not _can_be_forked():
        return None
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))

    def measure() -> int:
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else torch.compile starts a pool of processes
        before = _resident("VmRSS")
        with torch_threads(threads):
            run = Case(model, inputs, threads).prepare(name)
            gc.collect()
            _give_back()
            _RESET.write_text("5")  # the peak starts anew from what is held now
            for _ in range(2):
                run()
        return _resident("VmHWM") - before + (0 if name in _OWN_COPY else weights)  # which were here before

    return _in_a_fork(measure)


def _can_be_forked() -> bool:
    return sys.platform == "linux" and _RESET.exists() and "Threads:\t1\n" in _STATUS.read_text()


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _give_back() -> None:
    """Freed memory that glibc keeps would count as used."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _in_a_fork(measure: Callable[[], int]) -> int | None:
    """What `measure` gives in a process of its own; None where it fails or takes too long."""
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.write(write, str(measure()).encode())
            util._run_finalizers()  # type: ignore[attr-defined] # semaphores made here would be reported as leaked
        finally:
            os._exit(0)  # without cleaning up, nor a word of an error: what is open belongs to the other process
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], _LONGEST_S)
        told = os.read(read, 64) if ready else b""
    finally:
        os.close(read)
        if not told:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return int(told) if told else None
