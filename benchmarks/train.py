"""A training step at batch 128 of two networks: their depthwise layers native, beside torch's own.

    python benchmarks/train.py [--rounds 7] [--threads 1] [--without-compile]

Networks: ResNet-20 with every 3x3 layer but the first made separable at depth multiplier 2, at 32x32, beside the dense
ResNet-20; MobileNetV2 at 64x64. Both hold norm and activation in a torch.nn.Sequential, where `accelerate` joins them.
A step is forward, loss, backward and SGD. Loss and gradients are compared with float64 before anything is timed; ways
take turns, every other round backwards. "without depthwise" replaces each depthwise layer by a repetition of its input,
the ceiling of what faster depthwise layers can give. Freed memory is kept, as docs/performance.md tells. Processor time
on one thread, the clock on several. `kept_mb` is the distinct memory that autograd keeps from forward to backward,
`peak_mb` the most that a step adds to the memory of the process, both before the timing and on Linux alone.
Rows: results/train.csv; `eager_over_this` is eager channels-last over this way.
"""

import argparse
import ctypes
import datetime
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import measured
import torch
import torch.nn.functional as F
from resnet20 import BasicBlock, resnet20, shortcut
from torch import Tensor, nn

from separable import _native, accelerate
from separable.conversion.calibrate import replace
from separable.cost import processor
from separable.layers import DepthwiseConv2d, SeparableConv2d
from separable.models import MobileNetV2

BATCH = 128


class Repeated(nn.Module):
    """In place of a depthwise layer: [N, C, H, W] -> [N, C*m, H/stride, W/stride] by repetition alone."""

    def __init__(self, multiplier: int, stride: int):
        super().__init__()
        self.multiplier, self.stride = multiplier, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.stride == 1 else F.avg_pool2d(x, 1, self.stride)  # keeps channels-last
        return x if self.multiplier == 1 else torch.cat([x] * self.multiplier, 1)


class Block(nn.Module):
    """A block of ResNet-20 as one sequence beside its shortcut: there an activation joins the norm before it."""

    def __init__(self, block: BasicBlock):
        super().__init__()
        self.body = nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2)
        self.stride, self.extra_channels = block.stride, block.extra_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + shortcut(x, self.stride, self.extra_channels))


def separable_resnet20() -> nn.Module:
    network = resnet20()
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and name != "conv1":
            sizes = (module.in_channels, module.out_channels, 3, module.stride[0], 1)
            replace(network, module, SeparableConv2d(*sizes, bias=False, depth_multiplier=2))
        if isinstance(module, BasicBlock):
            replace(network, module, Block(module))
    return network


NETWORKS = {
    "separable ResNet-20, 32x32": (separable_resnet20, 32),
    "MobileNetV2, 64x64": (lambda: MobileNetV2(num_classes=10, dropout=0.0), 64),
}


def without_depthwise(network: nn.Module) -> nn.Module:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SeparableConv2d):
                kept = nn.Sequential(repetition(child.conv_dw), child.conv_pw)
                setattr(module, name, kept)
            elif isinstance(child, DepthwiseConv2d):
                setattr(module, name, repetition(child))
    return network


def repetition(layer: DepthwiseConv2d) -> Repeated:
    return Repeated(layer.weight.shape[0] // layer.in_channels, layer.stride[0])


class Step:
    """One way to train: a network, its batch in one layout, and what torch may use."""

    def __init__(self, network: nn.Module, images: Tensor, own: bool, last: bool, compiled: bool = False):
        self.allowed: Callable = nullcontext if own else _native.standard_operators
        self.last = last
        layout = torch.channels_last if last else torch.contiguous_format
        self.network = network.to(memory_format=layout)
        self.images = images.contiguous(memory_format=layout)
        self.labels = torch.arange(len(images)) % 10
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3)
        self.forward = torch.compile(self.network, dynamic=False) if compiled else self.network

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        with self.allowed():
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.forward(self.images), self.labels)
            loss.backward()
        return loss.detach(), [p.grad.clone() for p in self.network.parameters() if p.grad is not None]

    def __call__(self) -> None:
        with self.allowed():
            self.optimizer.zero_grad()
            F.cross_entropy(self.forward(self.images), self.labels).backward()
            self.optimizer.step()


def kept_megabytes(step: Step) -> float:
    with step.allowed(), measured.kept_by_autograd() as kept:
        F.cross_entropy(step.network(step.images), step.labels)
    return sum(kept.values()) / 1e6


def peak_megabytes(step: Step) -> float:
    """How far a step takes the resident memory of the process above where it was, once freed memory went back."""

    def resident(which: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(which))

    step.optimizer.zero_grad()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) * 1024 / 1e6


def memory_of(step: Step) -> dict[str, float]:
    if sys.platform != "linux" or step.forward is not step.network:  # the compiler arranges memory of its own
        return {}
    step()  # once for what is allocated for good
    return {"kept_mb": round(kept_megabytes(step)), "peak_mb": round(peak_megabytes(step))}


def ways_of(name: str, with_compile: bool) -> dict[str, Step]:
    build, size = NETWORKS[name]
    torch.manual_seed(0)
    weights, images = build().state_dict(), torch.randn(BATCH, 3, size, size)

    def network() -> nn.Module:
        made = build()
        made.load_state_dict(weights)
        return made

    ways = {
        "native": Step(accelerate(network(), training=True), images, own=True, last=True),
        "native, default layout": Step(accelerate(network(), training=True), images, own=True, last=False),
        "eager channels-last": Step(network(), images, own=False, last=True),
        "eager": Step(network(), images, own=False, last=False),
    }
    if with_compile:
        ways["compile"] = Step(network(), images, own=False, last=True, compiled=True)
    if "ResNet" in name:
        learner = accelerate(network(), training=True, recompute=True)
        ways["native, recompute"] = Step(learner, images, own=True, last=True)
    exact_loss, exact = Step(network().double(), images.double(), own=False, last=False).gradients()
    own_error: dict[bool, float] = {}  # of torch by layout: norms amplify rounding, more so channels-last
    for way in sorted(ways, key=lambda way: not way.startswith("eager")):
        loss, found = ways[way].gradients()
        errors = [float((a - b).norm() / (b.norm() + 1e-6)) for a, b in zip(found, exact, strict=True)]
        error = statistics.median(errors)
        limit = 3 * own_error.setdefault(ways[way].last, error)
        assert abs(loss - exact_loss) < 1e-4, f"{name}, {way}: the loss differs by {abs(loss - exact_loss):.1e}"
        assert error <= limit, f"{name}, {way}: gradients differ by {error:.1e}, more than {limit:.1e}"
    ways["without depthwise"] = Step(without_depthwise(network()), images, own=False, last=True)
    if "ResNet" in name:
        ways["dense, channels-last"] = Step(resnet20(), images, own=False, last=True)
        ways["dense"] = Step(resnet20(), images, own=False, last=False)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock, rows = time.process_time if given.threads == 1 else time.perf_counter, []
    made = {name: ways_of(name, not given.without_compile) for name in NETWORKS}
    memory = {name: {way: memory_of(step) for way, step in ways.items()} for name, ways in made.items()}
    measured.keep_freed_memory()
    for name, ways in made.items():
        times: dict[str, list[float]] = {way: [] for way in ways}
        turns = list(ways.items())
        for turn in range(given.rounds + 1):
            for way, step in turns if turn % 2 else reversed(turns):
                start = clock()
                step()
                if turn:
                    times[way].append((clock() - start) * 1e3)
        median = {way: statistics.median(found) for way, found in times.items()}
        for way, found in times.items():
            row = {"network": name, "way": way, "threads": given.threads, "ms": round(median[way], 1)}
            row |= {"least": round(min(found), 1), "most": round(max(found), 1)}
            row |= {"eager_over_this": round(median["eager channels-last"] / median[way], 2)}
            row |= {"default_eager_over_this": round(median["eager"] / median[way], 2), **memory[name][way]}
            row |= {"isa": _native.isa()}
            row |= {"processor": processor(), "torch": torch.__version__, "date": datetime.date.today().isoformat()}
            rows.append(row)
            print(row, flush=True)
    measured.write("train", rows, ("network", "threads", "processor"))


if __name__ == "__main__":
    main()
