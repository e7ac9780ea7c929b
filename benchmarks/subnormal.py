"""What weights below the smallest normal number (1e-38) cost: a network with 70 % of them beside one with zeros there.

    python benchmarks/subnormal.py [--threads 1]

Networks of random weights and norms; of each convolution the same 70 % of the weights become 1e-39, or zero. Outputs
are compared with eager's on the zeros in the same run before anything is timed. The two networks take turns, medians
of the processor's time on one thread and of the clock on several. Ways: `accelerate`, eager, and eager in a thread
that torch.set_flush_denormal(True) makes take such numbers for zeros. A row a network, way and number of threads in
results/subnormal.csv. What subnormal numbers cost in eager is a matter of the processor: Intel's are slow, AMD's Zen 4
and later are not.
"""

import argparse
import copy
import datetime
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import measured
import torch
from networks import network
from torch import Tensor, nn

import separable
from separable import _native, accelerate, cost, runtimes
from separable.cost import processor

NETWORKS, SHARE = ("resnet18", "mobilenetv1_100"), 0.7
ROUNDS = {"accelerate": 30, "eager": 5, "eager, set_flush_denormal": 15}


def pair(name: str) -> dict[str, nn.Module]:
    """The network with zeros and the one with subnormal weights in their places."""
    with_zeros = network(name)
    with_subnormal = copy.deepcopy(with_zeros)
    drawn = torch.Generator().manual_seed(0)
    for module, twin in zip(with_zeros.modules(), with_subnormal.modules(), strict=True):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            chosen = torch.rand(module.weight.shape, generator=drawn) < SHARE
            module.weight[chosen], twin.weight[chosen] = 0, 1e-39
    return {"without": with_zeros, "with": with_subnormal}


def runs_of(way: str, models: dict[str, nn.Module], x: Tensor) -> dict[str, Callable[[], Tensor]]:
    if way == "accelerate":
        fast = {side: accelerate(model, x) for side, model in models.items()}
        return {side: lambda model=model: model(x) for side, model in fast.items()}
    return {side: lambda model=model: model(x) for side, model in models.items()}


def measure(name: str, way: str) -> dict:
    threads = torch.get_num_threads()
    clock = time.process_time if threads == 1 else time.perf_counter
    models, x = pair(name), torch.randn(1, 3, 224, 224)
    share = statistics.fmean(row.share for row in cost.subnormal_weights(models["with"]))
    expected = models["without"](x)
    torch.set_flush_denormal(way.endswith("set_flush_denormal"))
    try:
        runs = runs_of(way, models, x)
        errors = {side: runtimes.relative_error(run(), expected) for side, run in runs.items()}
        assert max(errors.values()) < 1e-4, errors
        times: dict[str, list[float]] = {side: [] for side in runs}
        for i in range(ROUNDS[way]):
            for side, run in runs.items() if i % 2 else reversed(runs.items()):
                started = clock()
                run()
                times[side].append((clock() - started) * 1e3)
    finally:
        torch.set_flush_denormal(False)
    medians = {side: statistics.median(samples) for side, samples in times.items()}
    return {
        "network": name,
        "threads": threads,
        "way": way,
        "share": round(share, 2),
        "without_ms": round(medians["without"], 3),
        "with_ms": round(medians["with"], 3),
        "with_over_without": round(medians["with"] / medians["without"], 3),
        "relative_error": f"{errors['with']:.1e}",
        "clock": "processor" if threads == 1 else "wall",
        "isa": _native.isa(),
        "processor": processor(),
        "torch": torch.__version__,
        "separable": separable.__version__,
        "date": datetime.date.today().isoformat(),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="1 or 2; both, each in a fresh process, if not given")
    options = parser.parse_args()
    if options.threads is None:
        for threads in ("1", "2"):
            subprocess.run([sys.executable, *sys.argv, "--threads", threads], check=True)
        return
    torch.set_num_threads(options.threads)
    rows = []
    for name in NETWORKS:
        for way in ROUNDS:
            rows.append(measure(name, way))
            row = rows[-1]
            shown = (
                f"{row['without_ms']:9.2f} ms without {row['with_ms']:9.2f} ms with {row['with_over_without']:7.2f} x"
            )
            print(f"{name:18} {row['threads']} {way:28} {shown}  error {row['relative_error']}", flush=True)
    measured.write("subnormal", rows, ("network", "threads", "processor"))


if __name__ == "__main__":
    main()
