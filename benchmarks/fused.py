"""Fused separable convolutions and bottlenecks at batch 1, one thread, float32: `accelerate` beside its peers.

    python benchmarks/fused.py [--rounds 12] [--only separable bottleneck] [--without-compile]

MobileNetV1's separable layers (depthwise 3x3, ReLU6, pointwise, ReLU6) and MobileNetV2's bottlenecks (pointwise, ReLU6,
depthwise 3x3, ReLU6, pointwise, and the input added where shapes allow). Outputs are compared with eager's before any
is timed; peers take turns of some calls each, and the processor time of the process is taken, which on a shared machine
leaves out the turns of others. "accelerate" and "functional" (`separable_conv2d`, which packs its weights in each call)
read and write channels-last memory, as eager channels-last does; "accelerate, default layout" copies on the way in and
out. The allocator keeps freed memory, for all peers alike: else each would pay the pages of its result anew. One row a
shape and peer in results/fused.csv; the limit is the shape's multiply-adds at the rate of the largest matrix product,
measured in the same run. Peers that cannot be used here are left out; OpenVINO's waiting threads count in the processor
time, so its rows are upper bounds.
"""

import argparse
import datetime
import math
import statistics
import time
from collections.abc import Callable

import measured
import torch
from networks import peak_macs_a_ms
from torch import Tensor, nn

import separable
from separable import _native, cost, runtimes
from separable.cost import processor
from separable.functional import separable_conv2d

SEPARABLE = [  # C_in, C_out, H, stride
    (32, 64, 112, 1),
    (64, 128, 112, 2),
    (128, 128, 56, 1),
    (128, 256, 56, 2),
    (256, 256, 28, 1),
    (512, 512, 14, 1),
    (1024, 1024, 7, 1),
]
BOTTLENECK = [(24, 56, 1), (32, 28, 1), (64, 14, 1), (96, 14, 2), (160, 7, 1)]  # C, H, stride; six times as wide inside
Run = Callable[[], Tensor]
PEERS = {  # their names in the rows, and the runtimes'
    "eager": "torch",
    "eager channels-last": "torch channels-last",
    "compile with freezing": "compile",
    "onnxruntime": "onnxruntime",
    "openvino f32": "openvino",
}
CALLS = 5  # timed in each turn
BARS = {"separable": (1.1, 1.5), "bottleneck": (1.1, 1.4)}  # each shape, geometric mean: times the best peer


class Bottleneck(nn.Module):
    """MobileNetV2's, batch norms folded."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        wide = 6 * channels
        self.residual = stride == 1
        self.steps = nn.Sequential(
            nn.Conv2d(channels, wide, 1),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide),
            nn.ReLU6(),
            nn.Conv2d(wide, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.steps(x) if self.residual else self.steps(x)


def separable_layer(c_in: int, c_out: int, stride: int) -> nn.Module:
    depthwise = nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in)
    return nn.Sequential(depthwise, nn.ReLU6(), nn.Conv2d(c_in, c_out, 1), nn.ReLU6())


def functional(model: nn.Module, x: Tensor) -> Run:
    depthwise, _, pointwise, _ = model
    tensors = (depthwise.weight, pointwise.weight, depthwise.bias, pointwise.bias)
    options = {"stride": depthwise.stride, "padding": 1, "inner_activation": "relu6", "activation": "relu6"}
    return lambda: separable_conv2d(x, *tensors, **options)


def shapes(only: list[str]) -> list[tuple[str, str, nn.Module, Tensor]]:
    """Kind, name, network and input of each row."""
    torch.manual_seed(0)
    rows: list[tuple[str, str, nn.Module, Tensor]] = []
    if "separable" in only:
        for c_in, c_out, size, stride in SEPARABLE:
            model, x = separable_layer(c_in, c_out, stride), torch.randn(1, c_in, size, size)
            rows.append(("separable", f"{c_in}-{c_out} {size}x{size} stride {stride}", model.eval(), x))
    if "bottleneck" in only:
        for channels, size, stride in BOTTLENECK:
            model, x = Bottleneck(channels, stride), torch.randn(1, channels, size, size)
            rows.append(("bottleneck", f"{channels} {size}x{size} stride {stride}", model.eval(), x))
    return rows


def timed(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time. The peers take turns, whose first call warms the caches and is not timed."""
    times: dict[str, list[float]] = {peer: [] for peer in runs}
    for _ in range(rounds):
        for peer, run in runs.items():
            run()
            for _ in range(CALLS):
                started = time.process_time()
                run()
                times[peer].append((time.process_time() - started) * 1e3)
    return times


def measure(kind: str, name: str, model: nn.Module, x: Tensor, rounds: int, peers: dict) -> list[dict]:
    expected = model(x)
    x_last = x.contiguous(memory_format=torch.channels_last)
    runs = {
        "accelerate": runtimes.prepare("accelerate", model, x_last),
        "accelerate, default layout": runtimes.prepare("accelerate", model, x),
    }
    if kind == "separable":
        runs["functional"] = functional(model, x_last)
    runs |= {peer: runtimes.prepare(runtime, model, x) for peer, runtime in peers.items()}
    errors = {peer: runtimes.relative_error(run(), expected) for peer, run in runs.items()}
    assert max(errors.values()) < 1e-4, errors
    times = timed(runs, rounds)
    medians = {peer: statistics.median(samples) for peer, samples in times.items()}
    best = min(medians[peer] for peer in peers)
    limit = cost.count(model, x).macs / peak_macs_a_ms(time.process_time)
    return [
        {
            "kind": kind,
            "shape": name,
            "peer": peer,
            "median_ms": round(medians[peer], 4),
            "p20_ms": round(sorted(samples)[len(samples) // 5], 4),
            "best_peer_over_this": round(best / medians[peer], 3),
            "share_of_limit": round(limit / medians[peer], 3),
            "relative_error": f"{errors[peer]:.1e}",
            "threads": 1,
            "isa": _native.isa(),
            "processor": processor(),
            "torch": torch.__version__,
            "separable": separable.__version__,
            "date": datetime.date.today().isoformat(),
        }
        for peer, samples in times.items()
    ]


def summary(rows: list[dict]) -> None:
    for row in rows:
        print(
            f"{row['kind']:10} {row['shape']:28} {row['peer']:26} {row['median_ms']:8.4f} ms"
            f"  best peer/this {row['best_peer_over_this']:5.2f}  of the limit {row['share_of_limit']:.0%}"
        )
    for kind, (each, mean) in BARS.items():
        mine = [row["best_peer_over_this"] for row in rows if row["kind"] == kind and row["peer"] == "accelerate"]
        if mine:
            reached = math.exp(statistics.fmean(map(math.log, mine)))
            print(f"{kind}: geometric mean {reached:.2f} (bar {mean}), least {min(mine)} (bar {each})")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", nargs="*", choices=list(BARS), default=list(BARS))
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured.keep_freed_memory()
    peers = dict(PEERS)
    for peer, runtime in PEERS.items():
        reason = "not asked for" if runtime == "compile" and options.without_compile else runtimes.why_not(runtime)
        if reason:
            del peers[peer]
            print(f"{peer} is left out: {reason}")
    rows = []
    for kind, name, model, x in shapes(options.only):
        rows += measure(kind, name, model, x, options.rounds, peers)
        print(f"{kind} {name}: done", flush=True)
    summary(rows)
    measured.write("fused", rows, ("kind", "shape", "processor"))


if __name__ == "__main__":
    main()
