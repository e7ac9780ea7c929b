"""Milliseconds of one step of distillation: ResNet-20 made of chains, as torch runs it and as `separable.distill` does.

    python benchmarks/distill_steps.py [--threads 2] [--repeats 15]

Each 3x3 convolution but the first is a chain of pointwise, depthwise and pointwise (random weights: time alone counts)
at three tenths of its multiply-adds; batches of 128 images of 32x32. Ways are timed by turns; medians.
Checked first: all give the same loss. Writes benchmarks/results/distill_steps.csv.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import measured
import torch
from resnet20 import resnet20
from torch import Tensor, nn

import separable
from separable.conversion.distill import softened_divergence

BATCH, SHARE = 128, 0.3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--repeats", type=int, default=15)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    teacher, student = resnet20().eval(), of_chains()
    x = torch.randn(BATCH, 3, 32, 32)
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        target = teacher(x)
    channels_last = copy.deepcopy(student).to(memory_format=torch.channels_last)
    native = separable.accelerate(student, training=True).to(memory_format=torch.channels_last)
    plan = separable.accelerate(teacher, last, tune=False)
    ways = {
        ("student, one step", "torch"): step(student, x, target),
        ("student, one step", "torch, channels last"): step(channels_last, last, target),
        ("student, one step", "distill"): step(native, last, target),
        ("teacher, forward", "torch"): lambda: forward(teacher, x),
        ("teacher, forward", "torch, channels last"): lambda: forward(teacher, last),
        ("teacher, forward", "accelerate"): lambda: forward(plan, last),
    }
    first = {way: run() for way, run in ways.items()}
    losses = [value for (what, _), value in first.items() if what.startswith("student")]
    assert max(losses) - min(losses) < 1e-3 * max(losses), losses
    rows = []
    for (what, way), times in timed(ways, options.repeats).items():
        rows.append({"what": what, "way": way, "median_ms": round(statistics.median(times), 1)})
        rows[-1] |= {"lowest_ms": round(min(times), 1), "highest_ms": round(max(times), 1)}
        rows[-1] |= {"batch": BATCH, "threads": options.threads, "torch": torch.__version__}
        print(rows[-1], flush=True)
    measured.write("distill_steps", rows, ("what", "threads"))


def of_chains() -> nn.Module:
    network = resnet20()
    for name, conv in list(network.named_modules()):
        if isinstance(conv, nn.Conv2d) and name != "conv1":
            into, out, stride = conv.in_channels, conv.out_channels, conv.stride[0]
            rank = max(4, round(SHARE * 9 * into * out / (stride**2 * into + 9 + out)))
            owner, _, last = name.rpartition(".")
            chain = nn.Sequential(
                nn.Conv2d(into, rank, 1, bias=False),
                nn.Conv2d(rank, rank, 3, stride, 1, groups=rank, bias=False),
                nn.Conv2d(rank, out, 1, bias=False),
            )
            setattr(network.get_submodule(owner), last, chain)
    return network


def step(network: nn.Module, x: Tensor, target: Tensor) -> Callable[[], float]:
    optimizer = torch.optim.Adam(network.train().parameters(), 1e-9, fused=True)

    def run() -> float:
        optimizer.zero_grad()
        loss = softened_divergence(network(x), target, 4.0)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


@torch.no_grad()
def forward(network: nn.Module, x: Tensor) -> float:
    return float(network(x).mean())


def timed(ways: dict, repeats: int) -> dict:
    times: dict = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            begin = time.perf_counter()
            run()
            times[way].append(1e3 * (time.perf_counter() - begin))
    return times


if __name__ == "__main__":
    main()
