"""What benchmarks share: rows of results/*.csv, new ones in place of old; freed memory kept, whatever way runs."""

import csv
import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from separable import atomic

RESULTS = Path(__file__).parent / "results"


def write(name: str, rows: Sequence[dict], keys: Sequence[str]) -> None:
    """Put rows into results/NAME.csv in place of all earlier ones with the same `keys`; keep the others.

    The ways that a row is compared with are not among the keys: what was measured together stays together.
    """
    file = RESULTS / f"{name}.csv"
    made, kept = {tuple(str(row[key]) for key in keys) for row in rows}, []
    if file.exists():
        with file.open(newline="") as opened:
            kept = [row for row in csv.DictReader(opened) if tuple(row[key] for key in keys) not in made]
    columns = dict.fromkeys(column for row in [*rows, *kept] for column in row)
    with atomic.write_beside(file) as beside, beside.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, [*columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def keep_freed_memory() -> None:
    """glibc gives large blocks back to the system at once; here it keeps them, as an inference engine does."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(parameter, 1 << 30)


@contextmanager
def kept_by_autograd() -> Iterator[dict[int, int]]:
    """Bytes of each distinct memory that is kept for backward while this is open, inputs and weights among them."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
