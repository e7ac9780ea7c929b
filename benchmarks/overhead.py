"""What a call costs beside its kernels: the checks of an accelerated network, and a depthwise layer on a tiny map.

    python benchmarks/overhead.py

Wall-clock microseconds, medians of calls in turn, one thread; rows in results/overhead.csv.
"""

import datetime
import statistics
import time
from collections.abc import Callable

import measured
import torch
from torch import nn

import separable
from separable import _native, accelerate, models
from separable.acceleration.state import State
from separable.cost import processor

NETWORKS = ("resnet50", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny")
CALLS = 500


def median_us(runs: dict[str, Callable], calls: int = CALLS) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(calls):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) * 1e6)
    return {name: statistics.median(samples) for name, samples in times.items()}


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for name in NETWORKS:
        network = models.import_timm().create_model(name).eval()
        state, modules = State(network), len(list(network.modules()))
        found |= median_us({f"is {name} unchanged, {modules} modules": state.is_current})
    x = torch.randn(1, 8, 4, 4)
    tiny = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()).eval()
    layers = {"DepthwiseConv2d": separable.DepthwiseConv2d(8, 8, 3, padding=1)}
    layers["nn.Conv2d, groups"] = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    with torch.no_grad():
        fast = accelerate(tiny, x)
        runs: dict[str, Callable] = {"accelerate, two layers": lambda: fast(x), "the same, eager": lambda: tiny(x)}
        runs |= {f"{name}, no gradients": lambda layer=layer: layer(x) for name, layer in layers.items()}
        found |= median_us(runs)
    found |= median_us(
        {f"{name}, forward with gradients": lambda layer=layer: layer(x) for name, layer in layers.items()}
    )
    machine = {"isa": _native.isa(), "processor": processor(), "torch": torch.__version__}
    machine |= {"separable": separable.__version__, "date": datetime.date.today().isoformat()}
    for what, microseconds in found.items():
        print(f"{what:48} {microseconds:8.1f} us")
    measured.write(
        "overhead", [{"what": w, "us": round(us, 1)} | machine for w, us in found.items()], ("what", "processor")
    )


if __name__ == "__main__":
    main()
