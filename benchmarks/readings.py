"""What three readings of "depthwise separable convolution" cost in time at C = 64, beside one dense convolution.

    python benchmarks/readings.py

Each reading is first checked against its own definition in float64, then timed interleaved with the dense layer; every
layer runs contiguous and channels-last, and its best is its time. One row a size and reading in results/readings.csv.
"""

import copy
import csv
import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import separable
from separable import GatedSeparableConv2d, SeparableConv2d, StackedConv2d, cost
from separable.cost import processor

CHANNELS, KERNEL = 64, 3
SIDES = (14, 56, 112)
ROUNDS = 150
RESULTS = Path(__file__).parent / "results" / "readings.csv"


def readings() -> dict[str, nn.Module]:
    """The dense layer and the three readings, [N, 64, H, W] -> [N, 64, H, W]."""
    return {
        "dense": nn.Conv2d(CHANNELS, CHANNELS, KERNEL, padding=KERNEL // 2),
        "a stacked": StackedConv2d(CHANNELS, CHANNELS, KERNEL),
        "b gated": GatedSeparableConv2d(CHANNELS, CHANNELS, KERNEL),
        "c separable": SeparableConv2d(CHANNELS, CHANNELS, KERNEL, padding="same"),
    }


def definition(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    """The same reading by torch's dense convolution alone, in float64; a depthwise filter is a diagonal dense one."""
    state = {key: value.double() for key, value in layer.state_dict().items()}

    def conv(part: str, x: Tensor) -> Tensor:
        weight, bias = state[f"{part}weight"], state.get(f"{part}bias")
        if weight.shape[1] == 1:
            weight = torch.diag_embed(weight[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)  # [C, C, k, k]
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    x = x.double()
    if name == "dense":
        return conv("", x)
    if name == "a stacked":
        return conv("conv2.", conv("conv1.", x))
    u = conv("conv_pw.", conv("conv_dw.", x))
    return u * conv("conv_spatial.", u) if name == "b gated" else u


def check(name: str, layer: nn.Module) -> None:
    """A wrong layer has no speed."""
    x = torch.randn(2, CHANNELS, 9, 11)
    torch.testing.assert_close(layer(x).double(), definition(name, layer, x), rtol=1e-4, atol=1e-4)


def interleaved_ms(jobs: dict[tuple[str, str], Callable[[], Tensor]]) -> dict[tuple[str, str], list[float]]:
    """Times of each job, all jobs once a round, so that a noisy second touches all of them.

    One thread runs all of it, and its processor time is taken: on an idle machine that is the time on the clock, on a
    shared one it leaves out the turns of others.
    """
    times: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    for round_number in range(ROUNDS + 5):
        for job, run in jobs.items():
            start = time.thread_time()
            run()
            if round_number >= 5:  # the first rounds warm caches and torch's own choices
                times[job].append((time.thread_time() - start) * 1e3)
    return times


def rows_of(side: int, models: dict[str, nn.Module]) -> list[dict]:
    """One row a reading at this size."""
    x = torch.randn(1, CHANNELS, side, side)
    inputs = {"contiguous": x, "channels_last": x.contiguous(memory_format=torch.channels_last)}
    placed = {
        (name, layout): (model if layout == "contiguous" else _channels_last(model), data)
        for name, model in models.items()
        for layout, data in inputs.items()
    }
    times = interleaved_ms({key: lambda m=m, d=d: m(d) for key, (m, d) in placed.items()})
    medians = {key: statistics.median(samples) for key, samples in times.items()}
    best = {name: min(inputs, key=lambda layout: medians[name, layout]) for name in models}
    dense_macs, dense_ms = cost.count(models["dense"], x).macs, medians["dense", best["dense"]]
    rows = []
    for name, model in models.items():
        samples = sorted(times[name, best[name]])
        macs, median_ms = cost.count(model, x).macs, medians[name, best[name]]
        rows.append(
            {
                "reading": name,
                "channels": CHANNELS,
                "kernel": KERNEL,
                "side": side,
                "macs": macs,
                "params": sum(p.numel() for p in model.parameters()),
                "macs_over_dense": round(macs / dense_macs, 4),
                "median_ms": round(median_ms, 4),
                "p20_ms": round(samples[len(samples) // 5], 4),
                "p80_ms": round(samples[len(samples) * 4 // 5], 4),
                "ms_over_dense": round(median_ms / dense_ms, 4),
                "layout": best[name],
                "threads": torch.get_num_threads(),
                "processor": processor(),
                "torch": torch.__version__,
                "separable": separable.__version__,
                "date": datetime.date.today().isoformat(),
            }
        )
    return rows


def _channels_last(model: nn.Module) -> nn.Module:

    return copy.deepcopy(model).to(memory_format=torch.channels_last)


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # one thread: the least noise on a shared machine
    models = {name: model.eval() for name, model in readings().items()}
    for name, model in models.items():
        check(name, model)
    rows = [row for side in SIDES for row in rows_of(side, models)]
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        line = f"{row['reading']:12} {row['side']:4}x{row['side']:<4} {row['macs'] / 1e6:8.2f} M MACs"
        print(
            f"{line}  {row['median_ms']:8.3f} ms  {row['ms_over_dense']:.2f} of dense in time, "
            f"{row['macs_over_dense']:.2f} on paper"
        )
    print(f"Written: {RESULTS}")


if __name__ == "__main__":
    main()
