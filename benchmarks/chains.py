"""Separable chains beside the dense 3x3 layer that they replace: share of its time and of its MACs; float32.

    python benchmarks/chains.py [--rounds 15] [--batches 1 16] [--only bottleneck multiplier]

Bottleneck: pointwise C to R, depthwise 3x3, pointwise R to C, R = C and 2C, with and without ReLU between. Multiplier:
depthwise first and pointwise first with 2 and 4 maps of each channel. Both run through `accelerate` on channels-last
memory, as does the dense layer C to C: torch's own (`F.conv2d`, oneDNN) and, in a column of its own, accelerate's.
Outputs are compared with eager's in float64 before any is timed; the ways take turns of some calls each, and the
processor time of the process is taken. The allocator keeps freed memory, for all alike. One row a shape and form in
results/chains.csv; a bar is the share of the MACs plus what the chain may cost beside its multiplications.
"""

import argparse
import datetime
import statistics
import time
from collections.abc import Callable

import measured
import torch
from torch import Tensor, nn

import separable
from separable import _native, cost
from separable.cost import processor
from separable.layers import SeparableConv2d

LAYERS = [(16, 32), (32, 16), (32, 56), (64, 56), (128, 28), (256, 14)]  # C, H and W
BARS = {"bottleneck": {True: 0.05, False: 0.15}, "multiplier": {True: 0.08, False: 0.15}}  # C >= 64, C < 64
TURN_MS = 1.0  # of calls in a row


def bottleneck(channels: int, inner: int, activation: bool) -> nn.Module:
    between = [nn.ReLU()] if activation else []
    depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
    return nn.Sequential(
        nn.Conv2d(channels, inner, 1, bias=False), *between, depthwise, *between, nn.Conv2d(inner, channels, 1)
    )


def forms(kind: str, channels: int) -> list[tuple[str, nn.Module]]:
    if kind == "bottleneck":
        ways = [(r, activation) for r in (1, 2) for activation in (False, True)]
        return [(f"R={r}C{', relu' * act}", bottleneck(channels, r * channels, act)) for r, act in ways]
    orders = [(order, m) for order in ("depthwise_first", "pointwise_first") for m in (2, 4)]
    return [
        (f"{order} x{m}", SeparableConv2d(channels, channels, 3, padding=1, order=order, depth_multiplier=m))
        for order, m in orders
    ]


def timed(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time. The ways take turns, whose first call warms the caches and is not timed."""
    calls, times = {}, {way: [] for way in runs}
    for way, run in runs.items():
        run()
        started = time.process_time()
        run()
        calls[way] = max(1, round(TURN_MS / ((time.process_time() - started) * 1e3 + 1e-3)))
    for _ in range(rounds):
        for way, run in runs.items():
            run()
            started = time.process_time()
            for _ in range(calls[way]):
                run()
            times[way].append((time.process_time() - started) * 1e3 / calls[way])
    return times


def checked(model: nn.Module, x: Tensor, way: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    expected = model.double()(x.double())
    model.float()
    error = ((way(x) - expected).abs().max() / expected.abs().max()).item()
    assert error < 1e-5, error
    return lambda: way(x)


def measure(kind: str, channels: int, size: int, batch: int, rounds: int) -> list[dict]:
    x = torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    dense = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last).eval()
    runs = {
        "torch": checked(dense, x, dense),
        "accelerate": checked(dense, x, separable.accelerate(dense, (x,))),
    }
    found = [(name, model.eval()) for name, model in forms(kind, channels)]
    runs |= {name: checked(model, x, separable.accelerate(model, (x,))) for name, model in found}
    medians = {way: statistics.median(samples) for way, samples in timed(runs, rounds).items()}
    dense_macs = cost.count(dense, x).macs
    rows = []
    for name, model in found:
        macs, bar = cost.count(model, x).macs / dense_macs, BARS[kind][channels >= 64]
        rows.append(
            {
                "kind": kind,
                "shape": f"{channels} {size}x{size} batch {batch}",
                "form": name,
                "median_ms": round(medians[name], 4),
                "torch_dense_ms": round(medians["torch"], 4),
                "accelerate_dense_ms": round(medians["accelerate"], 4),
                "share_of_macs": round(macs, 3),
                "share_of_torch_time": round(medians[name] / medians["torch"], 3),
                "share_of_accelerate_time": round(medians[name] / medians["accelerate"], 3),
                "bar": round(macs + bar, 3),
                "threads": 1,
                "isa": _native.isa(),
                "processor": processor(),
                "torch": torch.__version__,
                "separable": separable.__version__,
                "date": datetime.date.today().isoformat(),
            }
        )
    return rows


def show(rows: list[dict]) -> None:
    for row in rows:
        met = "ok" if row["share_of_torch_time"] <= row["bar"] else "MISSED"
        print(
            f"{row['kind']:10} {row['shape']:20} {row['form']:20} {row['median_ms']:8.3f} ms"
            f"  MACs {row['share_of_macs']:.3f}"
            f"  time over torch's {row['share_of_torch_time']:.3f} (bar {row['bar']:.3f} {met})"
            f"  over accelerate's {row['share_of_accelerate_time']:.3f}",
            flush=True,
        )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--only", nargs="*", choices=list(BARS), default=list(BARS))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    measured.keep_freed_memory()
    rows = []
    for kind in options.only:
        for channels, size in LAYERS:
            for batch in options.batches:
                rows += measure(kind, channels, size, batch, options.rounds)
                show(rows[-4:])
    measured.write("chains", rows, ("kind", "shape", "form", "processor"))
    missed = sum(row["share_of_torch_time"] > row["bar"] for row in rows)
    print(f"{len(rows) - missed} of {len(rows)} within their bars")


if __name__ == "__main__":
    main()
