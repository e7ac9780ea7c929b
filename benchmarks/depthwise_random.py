"""Depthwise convolution in training on shapes drawn at random: impl="auto" beside torch's own, memory as it comes.

    python benchmarks/depthwise_random.py [--seed 1] [--shapes 20] [--threads 1] [--seconds 4]

Each shape is drawn evenly: 8 to 512 channels, 7 to 112 a side, kernels of 3 to 9 (or those that --kernels names),
stride 1 or 2, batches of 4 to 64; one whose input has more than 2^25 numbers is drawn again. A step is the forward and
all gradients. The allocator is left as it is, so every way pays for fresh memory of its large results. Results of the
first and last channels, which are independent of the others, are compared with float64 before anything is timed; ways
take turns. On one thread the processor time of the process counts, on several the clock. One row a shape and way in
results/depthwise_random.csv; `versus_best` is torch's better layout over this way.
"""

import argparse
import datetime
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence

import measured
import torch
import torch.nn.functional as F
from torch import Tensor

from separable import _native, cost, functional

MOST = 2**25  # numbers of an input
LAYOUTS = {"channels-last": torch.channels_last, "default": torch.contiguous_format}
KEYS = ("seed", "shape", "threads", "processor")


def drawn(seed: int, count: int, kernels: Sequence[int]) -> list[tuple[int, int, int, int, int]]:
    """Batch, channels, side, kernel and stride of each shape."""
    draw, found = random.Random(seed), []
    while len(found) < count:
        batch, channels, side = draw.randint(4, 64), draw.randint(8, 512), draw.randint(7, 112)
        shape = (batch, channels, side, draw.choice(kernels), draw.randint(1, 2))
        if shape[0] * shape[1] * shape[2] ** 2 <= MOST:
            found.append(shape)
    return found


class Step:
    """One convolution, its tensors in one layout, by our function or torch's."""

    def __init__(self, shape: tuple[int, int, int, int, int], layout: torch.memory_format, ours: bool):
        self.batch, self.channels, side, self.kernel, self.stride = shape
        make = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, self.channels, side, side, generator=make)
        self.x = x.contiguous(memory_format=layout).requires_grad_()
        self.weight = torch.randn(self.channels, 1, self.kernel, self.kernel, generator=make).requires_grad_()
        self.bias = torch.randn(self.channels, generator=make).requires_grad_()
        out = (side + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1
        grad = torch.randn(self.batch, self.channels, out, out, generator=make)
        self.grad, self.ours = grad.contiguous(memory_format=layout), ours

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        window = (self.stride, self.kernel // 2)
        if self.ours:
            return functional.depthwise_conv2d(x, weight, bias, *window)
        return F.conv2d(x, weight, bias, *window, groups=x.shape[1])

    def __call__(self) -> tuple[Tensor, ...]:
        y = self.conv(self.x, self.weight, self.bias)
        return y, *torch.autograd.grad(y, (self.x, self.weight, self.bias), self.grad)

    def check(self) -> None:
        """Within what float32 sums of that length may differ from float64."""
        some = torch.tensor([*range(4), *range(self.channels - 4, self.channels)])
        x, grad = (t.detach()[:, some].double() for t in (self.x, self.grad))
        weight, bias = (t.detach()[some].double().requires_grad_() for t in (self.weight, self.bias))
        x.requires_grad_()
        y = F.conv2d(x, weight, bias, self.stride, self.kernel // 2, groups=len(some))
        exact = (y, *torch.autograd.grad(y, (x, weight, bias), grad))
        found = self()
        parts = (found[0][:, some], found[1][:, some], found[2][some], found[3][some])
        for got, wanted in zip(parts, exact, strict=True):
            error = (got.double() - wanted).norm() / wanted.norm()
            assert error < 64 * torch.finfo(torch.float32).eps, f"relative error {error:.1e}"


def timed(ways: dict[str, Callable], seconds: float, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of every call, by way, in turns, for about as many seconds; every other turn goes backwards."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    begin = clock()
    while len(found[next(iter(ways))]) < 5 or clock() - begin < seconds:
        turn = len(found[next(iter(ways))])
        for name, run in [*ways.items()][:: 1 if turn % 2 else -1]:
            start = clock()
            run()
            found[name].append((clock() - start) * 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shapes", type=int, default=20)
    parser.add_argument("--kernels", type=int, nargs="+", default=[*range(3, 10)])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4, help="of timing for each shape")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    machine = {"isa": _native.isa(), "processor": cost.processor(), "torch": torch.__version__}
    machine |= {"date": datetime.date.today().isoformat()}
    print(f"seed {options.seed}, {options.threads} threads, {machine['processor']}", flush=True)
    ratios: dict[str, list[float]] = {f"auto {name}": [] for name in LAYOUTS}
    for shape in drawn(options.seed, options.shapes, options.kernels):
        ways = {f"auto {name}": Step(shape, layout, True) for name, layout in LAYOUTS.items()}
        for step in ways.values():
            step.check()
        ways |= {f"torch {name}": Step(shape, layout, False) for name, layout in LAYOUTS.items()}
        for step in ways.values():
            step()
        times = timed(ways, options.seconds, clock)
        medians = {way: statistics.median(ms) for way, ms in times.items()}
        best = min(ms for way, ms in medians.items() if way.startswith("torch"))
        name, rows = "{}x{}x{}x{} k{} s{}".format(*shape[:3], *shape[2:]), []
        for way, ms in times.items():
            row = {"seed": options.seed, "shape": name, "way": way, "threads": options.threads, "rounds": len(ms)}
            row |= {"ms": f"{medians[way]:.3f}", "least": f"{min(ms):.3f}", "most": f"{max(ms):.3f}"}
            rows.append(row | {"versus_best": f"{best / medians[way]:.2f}"} | machine)
        measured.write("depthwise_random", rows, KEYS)
        for way in ratios:
            ratios[way].append(best / medians[way])
        shown = "  ".join(f"{way} {ms:.2f}" for way, ms in medians.items())
        print(f"{name:24} {shown}  -> " + " ".join(f"{ratios[way][-1]:.2f}" for way in ratios), flush=True)
    for way, values in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, values)))
        print(f"{way}: {mean:.2f} times torch's better layout (geometric mean), least {min(values):.2f}")


if __name__ == "__main__":
    main()
