"""Training one separable layer with and without recompute: what autograd keeps of it, and what a step costs.

    python benchmarks/recompute.py [--rounds 7]

Batch 32, 3x3, ReLU between the halves, channels-last, one thread; a step is forward and backward to all weights and the
input. Kept: bytes of distinct memory that saved_tensors_hooks see, input and weights among them. Gradients of both
ways are compared in each run; ways take turns, medians of processor time. Rows: results/recompute.csv.
"""

import argparse
import datetime
import statistics
import time

import measured
import torch
from torch import Tensor

from separable import _native
from separable.cost import processor
from separable.functional import separable_conv2d

SHAPES = [(32, 64, 32), (64, 128, 28), (128, 256, 14), (256, 256, 14), (512, 512, 7)]  # C_in, C_out, H


def step(tensors: list[Tensor], grad: Tensor, recompute: bool) -> tuple[float, float, int, list[Tensor]]:
    """Milliseconds forward and backward, bytes kept between them, and the gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    start = time.process_time()
    with measured.kept_by_autograd() as kept:
        y = separable_conv2d(*leaves, padding=1, inner_activation="relu", recompute=recompute)
    middle = time.process_time()
    gradients = torch.autograd.grad(y, leaves, grad)
    return (middle - start) * 1e3, (time.process_time() - middle) * 1e3, sum(kept.values()), list(gradients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows = []
    for channels, out_channels, size in SHAPES:
        x = torch.randn(32, channels, size, size).to(memory_format=torch.channels_last)
        tensors = [x, torch.randn(channels, 1, 3, 3) / 3, torch.randn(out_channels, channels, 1, 1) / channels**0.5]
        grad = torch.randn(32, out_channels, size, size).to(memory_format=torch.channels_last)
        steps: dict[bool, list] = {False: [], True: []}
        for _ in range(rounds + 1):
            for recompute, found in steps.items():
                found.append(step(tensors, grad, recompute))
        pairs = zip(steps[True][-1][3], steps[False][-1][3], strict=True)
        error = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        assert error < 1e-5, f"{channels, out_channels, size}: gradients differ by {error:.1e}"
        for recompute, found in steps.items():
            row = {"c_in": channels, "c_out": out_channels, "size": size, "recompute": recompute}
            row |= {"forward_ms": round(statistics.median(f[0] for f in found[1:]), 2)}
            row |= {"backward_ms": round(statistics.median(f[1] for f in found[1:]), 2)}
            row |= {"kept_bytes": found[-1][2], "error": f"{error:.1e}", "isa": _native.isa()}
            row |= {"processor": processor(), "torch": torch.__version__, "date": datetime.date.today().isoformat()}
            rows.append(row)
            print(row, flush=True)
    measured.write("recompute", rows, ("c_in", "c_out", "size", "processor"))


if __name__ == "__main__":
    main()
