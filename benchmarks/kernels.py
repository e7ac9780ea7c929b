"""Depthwise convolution, forward and backward: `functional` with impl="auto" and "native" beside torch's own.

    python benchmarks/kernels.py [--rounds 15] [--only grid default ...] [--without-compile] [--threads 1]

Groups: `grid` (nine shapes of networks, batch 16, channels-last), `default` (the same in torch's default layout),
`forward` (channels-last, without gradients, beside copying as many bytes), `other` (1-D causal, 3-D, depth multipliers)
and `bfloat16` (the grid). Results and gradients are compared with the reference in float64 before anything is timed;
ways take turns round by round, and freed memory is kept, since mapping it anew can take longer than these
convolutions, whatever way computes them. On one thread the processor time of the process is taken, which on a shared
machine leaves out the turns of others; on several, the clock. One row a shape and way in results/kernels.csv: the
median in milliseconds, the least and the most.
"""

import argparse
import datetime
import math
import statistics
import time
from collections.abc import Callable

import measured
import torch
from torch import Tensor

from separable import _native, cost
from separable.functional import depthwise_conv1d, depthwise_conv2d, depthwise_conv3d

GRID = [  # C, H, k, stride
    (32, 112, 3, 1),
    (96, 112, 3, 2),
    (144, 56, 3, 1),
    (192, 28, 3, 1),
    (384, 14, 3, 1),
    (960, 7, 3, 1),
    (240, 28, 5, 1),
    (96, 56, 7, 1),
    (384, 14, 7, 1),
]
OTHER = {  # name: input, multiplier, kernel, padding
    "causal k4": ((8, 768, 1024), 1, 4, "causal"),
    "causal k31": ((8, 256, 1024), 1, 31, "causal"),
    "volume 3x3x3": ((4, 32, 16, 28, 28), 1, 3, "same"),
    "multiplier 2": ((16, 64, 56, 56), 2, 3, "same"),
    "multiplier 4": ((16, 64, 28, 28), 4, 3, "same"),
}
CONV = {1: depthwise_conv1d, 2: depthwise_conv2d, 3: depthwise_conv3d}
KEYS = ("group", "shape", "threads", "processor")


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


class Shape:
    """Input, weight and the output's gradient of one convolution, and one call of it by a way."""

    def __init__(self, size, multiplier, kernel, stride, padding, dtype=torch.float32):
        torch.manual_seed(0)
        self.dims, self.options = len(size) - 2, {"stride": stride, "padding": padding}
        self.x = torch.randn(size, dtype=dtype)
        self.weight = torch.randn(size[1] * multiplier, 1, *[kernel] * self.dims, dtype=dtype)
        with torch.no_grad():
            self.grad = torch.randn_like(self.conv(self.x, self.weight, "reference"))

    def conv(self, x: Tensor, weight: Tensor, impl: str) -> Tensor:
        return CONV[self.dims](x, weight, **self.options, impl=impl)

    def step(self, impl: str, layout: Callable[[Tensor], Tensor], compiled: bool = False) -> Callable[[], tuple]:
        """Forward and both gradients, in memory laid out by `layout`."""
        x, weight = layout(self.x).requires_grad_(), self.weight.clone().requires_grad_()
        grad = layout(self.grad)
        if compiled:
            torch.compiler.reset()  # or after eight shapes it gives up
        conv = torch.compile(self.conv, dynamic=False) if compiled else self.conv

        def run():
            y = conv(x, weight, impl)
            return y, *torch.autograd.grad(y, (x, weight), grad)

        return run

    def check(self, run: Callable[[], tuple]) -> None:
        """Within what sums of that length in that dtype may differ from float64."""
        x, weight = self.x.double().requires_grad_(), self.weight.double().requires_grad_()
        y = self.conv(x, weight, "reference")
        exact = (y, *torch.autograd.grad(y, (x, weight), self.grad.double()))
        for found, wanted in zip(run(), exact, strict=False):
            error = (found.double() - wanted).norm() / wanted.norm()
            assert error < 16 * torch.finfo(self.x.dtype).eps, f"relative error {error:.1e}"


def timed(ways: dict[str, Callable], rounds: int, threads: int) -> dict[str, list[float]]:
    """Milliseconds of every call, by way, in turns.

    Each turn begins with a call that is not timed, and every other round goes backwards: what a way before it drove out
    of the caches is not counted against the next.
    """
    clock, found = (time.process_time if threads == 1 else time.perf_counter), {name: [] for name in ways}
    for turn in range(rounds):
        for name, run in [*ways.items()][:: 1 if turn % 2 else -1]:
            run()
            start = clock()
            run()
            found[name].append((clock() - start) * 1e3)
    return found


def grid_ways(shape: Shape, layouts: dict, with_compile: bool) -> dict[str, Callable]:
    own = next(iter(layouts.values()))
    ways = {"auto": shape.step("auto", own), "native": shape.step("native", own)}
    ways |= {f"eager {name}": shape.step("reference", layout) for name, layout in layouts.items()}
    if with_compile:
        ways["compile"] = shape.step("reference", own, compiled=True)
    return ways


def forward_ways(shape: Shape) -> dict[str, Callable]:
    """Without gradients; "copy" moves the input's and output's bytes as `clone` does."""
    x, weight = channels_last(shape.x), shape.weight
    y = shape.conv(x, weight, "reference")
    half = x.numel() + y.numel()
    copied = torch.randn(half // 2)

    def call(impl):
        def run():
            with torch.no_grad():
                return (shape.conv(x, weight, impl),)

        return run

    return {name: call(name) for name in ("auto", "native")} | {"eager": call("reference"), "copy": copied.clone}


def rows_of(group: str, with_compile: bool):
    """Name, shape and ways of each row of a group."""
    last, default = {"channels-last": channels_last}, {"default": lambda x: x.contiguous()}
    if group == "other":
        for name, (size, multiplier, kernel, padding) in OTHER.items():
            shape = Shape(size, multiplier, kernel, 1, padding)
            yield name, shape, grid_ways(shape, last | default, with_compile)
        return
    for channels, size, kernel, stride in GRID:
        dtype = torch.bfloat16 if group == "bfloat16" else torch.float32
        shape = Shape((16, channels, size, size), 1, kernel, stride, kernel // 2, dtype)
        name = f"16x{channels}x{size}x{size} k{kernel} s{stride}"
        if group == "forward":
            yield name, shape, forward_ways(shape)
        elif group == "default":
            yield name, shape, grid_ways(shape, default, False)
        else:
            layouts = last if group == "bfloat16" else last | default
            yield name, shape, grid_ways(shape, layouts, with_compile and group == "grid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    groups = ["grid", "default", "forward", "other", "bfloat16"]
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    parser.add_argument("--without-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured.keep_freed_memory()
    machine = {"date": datetime.date.today().isoformat(), "processor": cost.processor()}
    machine |= {"isa": _native.isa(), "torch": torch.__version__}
    for group in options.only:
        ratios = {"auto": [], "native": []}
        for name, shape, ways in rows_of(group, not options.without_compile):
            shape.check(ways["native"])
            times = timed(ways, options.rounds, options.threads)
            medians = {way: statistics.median(ms) for way, ms in times.items()}
            best = min(ms for way, ms in medians.items() if way not in ("auto", "native", "copy"))
            rows = []
            for way, ms in times.items():
                row = {"group": group, "shape": name, "way": way, "threads": options.threads}
                row |= {"ms": f"{medians[way]:.3f}", "least": f"{min(ms):.3f}", "most": f"{max(ms):.3f}"}
                rows.append(row | {"versus_best": f"{best / medians[way]:.2f}"} | machine)
            measured.write("kernels", rows, KEYS)
            for way in ratios:
                ratios[way].append(best / medians[way])
            shown = "  ".join(f"{way} {ms:.2f}" for way, ms in medians.items())
            print(f"{group:8} {name:24} {shown}  -> {best / medians['auto']:.2f}", flush=True)
        for way, values in ratios.items():
            mean = math.exp(statistics.fmean(math.log(v) for v in values))
            print(f"{group}: {way} {mean:.2f} times the best peer (geometric mean), least {min(values):.2f}")


if __name__ == "__main__":
    main()
