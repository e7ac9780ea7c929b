"""3x3 convolutions of stride 1 in each form, direct and Winograd's of 2x2 and 4x4 outputs, beside torch's own.

    python benchmarks/winograd.py [--threads 1] [--rounds 15]

Channels-last maps, one layer through the programs that `accelerate` makes. The largest error, of the largest output, is
against float64. Forms take turns; one row a shape and form in results/winograd.csv.
"""

import argparse
import datetime
import statistics
import time

import measured
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import separable
from separable import _native, accelerate
from separable.acceleration.choose import Choices
from separable.acceleration.operations.dense_conv import DIRECT, ONEDNN
from separable.cost import processor

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7), (64, 112), (128, 128), (256, 64), (512, 32))  # channels, side
FORMS = {"direct": DIRECT, "F(2x2, 3x3)": 2, "F(4x4, 3x3)": 4, "oneDNN": ONEDNN}


class Always(dict):
    """One form for every shape."""

    def __init__(self, tile: int):
        super().__init__()
        self.tile = tile

    def get(self, key, default=None) -> int:
        return self.tile


def form(layer: nn.Module, tile: int, x: Tensor):
    fast = accelerate(layer)
    fast.choices = Choices(tune=False, forms=Always(tile))
    fast.plan(x)
    assert all(row.is_native for row in fast.report.rows)
    return lambda: fast(x)


def measure(channels: int, side: int, batch: int, rounds: int) -> list[dict]:
    layer = nn.Conv2d(channels, channels, 3, padding=1).eval()
    x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last)
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    own = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last).eval()
    own.load_state_dict(layer.state_dict())
    runs = {name: form(layer, tile, x) for name, tile in FORMS.items()} | {"torch": lambda: own(x)}
    errors = {name: ((run() - exact).abs().max() / exact.abs().max()).item() for name, run in runs.items()}
    assert max(errors.values()) < 1e-5, errors
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name, run in list(runs.items())[:: 1 if i % 2 else -1]:
            run()
            started = clock()
            run()
            times[name].append((clock() - started) * 1e3)
    medians = {name: statistics.median(ms) for name, ms in times.items()}
    return [
        {
            "shape": f"{channels} {side}x{side} batch {batch}",
            "form": name,
            "threads": torch.get_num_threads(),
            "median_ms": round(medians[name], 4),
            "torch_over_this": round(medians["torch"] / medians[name], 3),
            "relative_error": f"{errors[name]:.1e}",
            "isa": _native.isa(),
            "processor": processor(),
            "torch": torch.__version__,
            "separable": separable.__version__,
            "date": datetime.date.today().isoformat(),
        }
        for name in runs
    ]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    measured.keep_freed_memory()
    for channels, side in LAYERS:
        for batch in (1, 8) if side < 100 else (1,):
            rows = measure(channels, side, batch, options.rounds)
            measured.write("winograd", rows, ("shape", "threads", "processor"))
            for row in rows:
                ratio = f"{row['torch_over_this']:5.2f} times torch's  error {row['relative_error']}"
                print(f"{row['shape']:22} {row['form']:12} {row['median_ms']:8.3f} ms  {ratio}", flush=True)


if __name__ == "__main__":
    main()
