"""What this machine can do at most, measured: float32 arithmetic, bandwidth from memory, bandwidth within the caches.

Arithmetic is the best of many matrix products of several sizes; bandwidth the best copy (each byte read once or written
once) of a buffer far larger than the caches, and of one that fits in them. Both run with the threads that torch has.
"""

import functools
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

_MATRICES = (384, 512, 1024, 2048, 4096)  # sides; small ones find a quiet moment, large ones fill large machines
_LONG_S = 0.01  # a product this long is large enough
_COPIED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Machine:
    """Measured limits. cache_bytes is 0, and cache_gb_s that of memory, where the size of the caches is not known."""

    device: str
    threads: int
    peak_gflops: float
    bandwidth_gb_s: float
    cache_gb_s: float
    cache_bytes: int

    def compute_ms(self, flops: int) -> float:
        return flops / self.peak_gflops / 1e6

    def memory_ms(self, bytes: int, resident: bool) -> float:
        return bytes / (self.cache_gb_s if resident else self.bandwidth_gb_s) / 1e6

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Limits:
    """Takes samples of what a device can do; other work may slow one down, so the best of all of them counts."""

    def __init__(self, device: torch.device):
        self._device, self._cache_bytes = device, _cache_bytes(device)
        self._matrices: dict[int, torch.Tensor] = {}
        self._copies = [_Copy(max(_COPIED_BYTES, 4 * self._cache_bytes), device)]
        if self._cache_bytes:
            self._copies.append(_Copy(self._cache_bytes // 4, device))
        self._gflops = 0.0

    def sample(self) -> None:
        for side in _MATRICES:
            if side not in self._matrices:
                self._matrices[side] = torch.rand(side, side, device=self._device)
            matrix = self._matrices[side]
            started = clock_s(self._device)
            torch.mm(matrix, matrix)
            taken_s = clock_s(self._device) - started
            self._gflops = max(self._gflops, 2 * side**3 / taken_s / 1e9)
            if taken_s > _LONG_S:
                break
        for copy in self._copies:
            copy.sample()

    def best(self) -> Machine:
        far, near = self._copies[0].gb_s, self._copies[-1].gb_s
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else processor()
        return Machine(name, torch.get_num_threads(), self._gflops, far, max(far, near), self._cache_bytes)


def measure_machine(device: torch.device | str = "cpu", samples: int = 12) -> Machine:
    """Measure the device that a network runs on; about half a second on an idle machine."""
    limits = Limits(torch.device(device))
    for _ in range(samples):
        limits.sample()
    return limits.best()


class _Copy:
    """Half of some bytes copied onto the other half: each byte read once or written once."""

    def __init__(self, bytes: int, device: torch.device):
        self._source = torch.ones(bytes // 8, device=device)
        self._target = torch.zeros_like(self._source)
        self._device, self.gb_s = device, 0.0
        self._rounds = max(1, 2**25 // bytes)  # a small copy is repeated, so that the clock is read seldom

    def sample(self) -> None:
        started = clock_s(self._device)
        for _ in range(self._rounds):
            self._target.copy_(self._source)
        taken_s = clock_s(self._device) - started
        self.gb_s = max(self.gb_s, 2 * self._source.numel() * 4 * self._rounds / taken_s / 1e9)


def clock_s(device: torch.device) -> float:
    """The time, once the device has finished what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1], 1))
    return max(sizes)


@functools.cache
def processor() -> str:
    """The processor's name; the kernel knows it where Python's `platform` does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "processor"
