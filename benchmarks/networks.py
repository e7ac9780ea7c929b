"""Whole networks: `accelerate` beside eager, compiled, onnxruntime and OpenVINO, in float32 and bfloat16.

    python benchmarks/networks.py [--kind separable] [--threads 1] [--only mobilenetv1_100 ...] [--rounds 15]

Two kinds, each with geometric means of its own: separable networks at batch 1, and dense and grouped ones.

Random weights, random batch norms; outputs are compared with eager's before anything is timed. The peers take turns in
`separable.runtimes.compare`, every other round backwards; the first call of a turn, which finds the caches as another
peer left them, is not timed. With one thread the processor time of the whole process is taken, which on a shared
machine leaves out the turns of others; with more, the clock. One row a network, peer and number of threads in
results/networks.csv. The floor is the network's multiply-adds at the rate of the largest matrix product, measured in
the same run. Peers that cannot be used here are left out.
"""

import argparse
import datetime
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import measured
import torch
from torch import nn
from vgg_unet import VGGUNet

import separable
from separable import _native, cost, models, runtimes
from separable.cost import processor

NETWORKS = {  # kind of each, batch, height and width
    "mobilenetv1_100": ("separable", 1, 224),
    "mobilenetv2_100": ("separable", 1, 224),
    "mobilenetv3_large_100": ("separable", 1, 224),
    "efficientnet_b0": ("separable", 1, 224),
    "convnext_tiny": ("separable", 1, 224),
    "legacy_xception": ("separable", 1, 299),
    "resnet18": ("dense", 1, 224),
    "resnet18, batch 8": ("dense", 8, 224),
    "resnet50": ("dense", 1, 224),
    "vgg11": ("dense", 1, 224),
    "regnetx_008": ("dense", 1, 224),
    "vgg_unet": ("dense", 1, 256),
}
PEERS = {  # their names in the rows, and the runtimes'
    "accelerate": "accelerate",
    "accelerate bf16": "accelerate bfloat16",
    "eager": "torch",
    "eager channels-last": "torch channels-last",
    "compile with freezing": "compile",
    "onnxruntime": "onnxruntime",
    "openvino f32": "openvino",
    "openvino default": "openvino default",
}
FLOAT32_PEERS = ("eager", "eager channels-last", "compile with freezing", "onnxruntime", "openvino f32")


def network(name: str) -> nn.Module:
    """timm's, or the text detector's, with batch norms and layer scales that do something."""
    torch.manual_seed(0)
    made = VGGUNet().eval() if name == "vgg_unet" else models.import_timm().create_model(name.split(",")[0]).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    for parameter_name, parameter in made.named_parameters():
        if parameter_name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.1, 1.0)
    return made


def peak_macs_a_ms(clock: Callable[[], float]) -> float:
    """Of a matrix product whose factors stay in cache, by as many threads; the best of many, for this is a limit."""
    a, b, out = torch.randn(768, 384), torch.randn(384, 384), torch.empty(768, 384)
    times = []
    for _ in range(100):
        started = clock()
        torch.mm(a, b, out=out)
        times.append(clock() - started)
    return a.numel() * b.shape[1] / (min(times) * 1e3)


def measure(name: str, rounds: int, compile_too: bool) -> list[dict]:
    """One row a peer; a wrong output has no speed."""
    threads = torch.get_num_threads()
    clock = time.process_time if threads == 1 else time.perf_counter
    kind, batch, size = NETWORKS[name]
    model, x = network(name), torch.randn(batch, 3, size, size)
    peers = {runtime: peer for peer, runtime in PEERS.items() if compile_too or runtime != "compile"}
    usable = [runtime for runtime in peers if runtimes.why_not(runtime) is None]
    compared = runtimes.compare({name: model}, x, names=usable, rounds=rounds)
    times: dict[str, list[float]] = {}
    errors: dict[str, float | None] = {}
    for row in compared.rows:
        assert row.error is None or not row.problem, (row.runtime, row.problem)
        if row.problem:
            print(f"{name}: {row.runtime}: {row.problem}")
            continue
        times[peers[row.runtime]], errors[peers[row.runtime]] = row.times_ms, row.error
    macs, peak = cost.count(model, x).macs, peak_macs_a_ms(clock)
    medians = {peer: statistics.median(samples) for peer, samples in times.items()}
    best = min(medians[peer] for peer in FLOAT32_PEERS if peer in medians)
    return [
        {
            "network": name,
            "kind": kind,
            "batch": batch,
            "size": size,
            "threads": threads,
            "peer": peer,
            "median_ms": round(medians[peer], 3),
            "p20_ms": round(sorted(samples)[len(samples) // 5], 3),
            "best_f32_peer_over_this": round(best / medians[peer], 3),
            "eager_over_this": round(medians["eager"] / medians[peer], 3),
            "floor_ms": round(macs / peak, 3),
            "relative_error": f"{errors[peer]:.1e}",
            "macs": macs,
            "clock": "processor" if threads == 1 else "wall",
            "isa": _native.isa(),
            "processor": processor(),
            "torch": torch.__version__,
            "separable": separable.__version__,
            "date": datetime.date.today().isoformat(),
        }
        for peer, samples in times.items()
    ]


def summary(rows: list[dict]) -> None:
    """The table, and the geometric means that the claims are about."""
    for row in rows:
        print(
            f"{row['network']:22} {row['threads']} {row['peer']:22} {row['median_ms']:9.3f} ms"
            f"  best peer/this {row['best_f32_peer_over_this']:5.2f}  eager/this {row['eager_over_this']:5.2f}"
            f"  floor {row['floor_ms']:7.3f}  error {row['relative_error']}"
        )
    for threads, kind in sorted({(row["threads"], row["kind"]) for row in rows}):
        mine = [row for row in rows if (row["peer"], row["threads"], row["kind"]) == ("accelerate", threads, kind)]
        for column in ("best_f32_peer_over_this", "eager_over_this"):
            mean = math.exp(statistics.fmean(math.log(row[column]) for row in mine))
            least = min(mine, key=lambda row: row[column])
            worst = f"least {least[column]} ({least['network']})"
            print(f"{kind}, {threads} threads, {column}: geometric mean {mean:.2f}, {worst}")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="1 or 2; both, each in a fresh process, if not given")
    parser.add_argument("--kind", choices=("separable", "dense"), help="both, if not given")
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    options = parser.parse_args()
    if options.threads is None:  # thread pools of the peers are made once a process
        for threads in ("1", "2"):
            subprocess.run([sys.executable, *sys.argv, "--threads", threads], check=True)
        return
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.only:
        if options.kind not in (None, NETWORKS[name][0]):
            continue
        rows += measure(name, options.rounds, not options.without_compile)
        print(f"{name}: done", flush=True)
    summary(rows)
    measured.write("networks", rows, ("network", "threads", "processor"))


if __name__ == "__main__":
    main()
