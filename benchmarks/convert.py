"""ResNet-20 on CIFAR-10 made separable on 1,024 training images without a gradient step; top-1 on 10,000 test images.

    SEPARABLE_DATA=FOLDER python benchmarks/convert.py [--seeds 3] [--threads 2]     FOLDER holds cifar10/

Rows: the dense network; the closed form alone, depthwise first, one rank everywhere but in the first layer; `convert`
under each budget, once for each draw of the calibration images. Writes benchmarks/results/convert.csv.
Every setting was chosen on training images outside the calibration draw; the test images are only counted here.
"""

import argparse
import copy
import csv
import importlib.util
import os
import statistics
import time
from pathlib import Path

import torch
from resnet20 import preprocess, resnet20
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

import separable
from separable import progress
from separable.conversion import factorize
from separable.conversion.calibrate import replace

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SEPARABLE_DATA") or HERE.parents[1] / "shared" / "data") / "cifar10"
BUDGETS = (0.60, 0.45)
CLOSED_FORM_RANKS = (4, 3)
IMAGES = 1024


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    train, test = read("train")[0], read("test")
    dense = resnet20()
    dense.load_state_dict(load_file(DATA / "resnet20.safetensors"))
    dense.eval()
    whole = separable.cost.count(dense, train[:1].float())
    rows = [row("dense", "", dense, whole, test)]
    for rank in CLOSED_FORM_RANKS:
        rows.append(row(f"closed form alone, rank {rank}", "", closed_form(dense, rank), whole, test))
    for budget in BUDGETS:
        for seed in range(options.seeds):
            chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:IMAGES]
            begin = time.process_time()  # of all threads: the machine may be shared
            with progress.shown():
                converted = separable.convert(dense, prepare(train[chosen]), {"macs": budget})
            seconds = time.process_time() - begin
            rows.append(row(f"convert, macs={budget}", seed, converted.model, whole, test, seconds, converted))
    write(rows, options.threads)


def read(split: str) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 3, 32, 32] and labels [N]."""
    spec = importlib.util.spec_from_file_location("unpack", DATA / "unpack.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    images, labels = unpack.arrays(split)
    return torch.from_numpy(images), torch.from_numpy(labels)


def prepare(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(preprocess[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (images.float() / 255 - mean) / std


def closed_form(dense: nn.Module, rank: int) -> nn.Module:
    network = copy.deepcopy(dense)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and name != "conv1":
            replace(network, module, factorize(module, "depthwise first", rank))
    return network


def row(
    name: str, seed, network: nn.Module, whole, test: tuple[Tensor, Tensor], seconds: float = 0.0, done=None
) -> dict:
    counted = separable.cost.count(network, prepare(test[0][:1]))
    result = {
        "network": name,
        "seed": seed,
        "top1_percent": round(100 * top1(network, *test), 2),
        "macs": counted.macs,
        "macs_share": round(counted.macs / whole.macs, 4),
        "params": counted.params,
        "convert_cpu_s": round(seconds, 1) or "",
        "times_as_fast": "" if done is None else round(done.times_as_fast, 2),
        "target": "" if done is None else done.target,
    }
    print(result, flush=True)
    return result


@torch.inference_mode()
def top1(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    right = 0
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        right += int((network(prepare(x)).argmax(1) == y).sum())
    return right / len(labels)


def write(rows: list[dict], threads: int) -> None:
    setting = {"images": IMAGES, "threads": threads, "torch": torch.__version__}
    file = HERE / "results" / "convert.csv"
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, [*rows[0], *setting])
        writer.writeheader()
        writer.writerows({**one, **setting} for one in rows)
    table = Table(title=f"ResNet-20, CIFAR-10, {IMAGES} calibration images, no gradient step")
    for heading in ("network", "top-1 %, mean", "lowest", "highest", "MACs share", "parameters", "convert, CPU s"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in dict.fromkeys(one["network"] for one in rows):
        same = [one for one in rows if one["network"] == name]
        scores = [one["top1_percent"] for one in same]
        spread = [f"{statistics.mean(scores):.2f}", f"{min(scores):.2f}", f"{max(scores):.2f}"]
        cost = [f"{max(one['macs_share'] for one in same):.4f}", f"{max(one['params'] for one in same):,}"]
        table.add_row(name, *spread, *cost, str(same[0]["convert_cpu_s"]))
    Console().print(table)
    print(f"written: {file}")


if __name__ == "__main__":
    main()
