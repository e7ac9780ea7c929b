"""A trained dense network in, a folder out: separable, calibrated, measured, saved, exported, compared."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from separable import atomic, conversion, report, store
from separable.commands.evaluate import accuracy
from separable.commands.network import open_network, preparation_of
from separable.commands.result import Result
from separable.conversion.plan import MEASURES, read_budget
from separable.data import ImageSet, open_images
from separable.errors import InputError, need
from separable.export import export_onnx
from separable.progress import say

_VALIDATION_SHARE = 0.1  # of the training images, held out to choose the epoch of distillation
_BATCH_SIZE = 128


@dataclass
class Options:
    """What `separable convert` was asked for."""

    source: str
    data: Path
    out: Path
    budget: str
    weights: Path | None
    split: str | None
    test: Path | None
    test_split: str | None
    samples: int
    distill: int
    images: dict[str, str | None]  # size, mean, std as typed
    seed: int
    overwrite: bool


def run(options: Options) -> Result:
    """Convert, distil where asked, measure, and write one folder that needs nothing else."""
    atomic.check_folder(options.out, overwrite=options.overwrite, argument="--out")
    budget = parse_budget(options.budget)
    network = open_network(options.source, options.weights)
    preparation = preparation_of(network, **options.images)
    for package in ("jinja2", "matplotlib"):
        need(package, "deploy", "for the page")
    images = open_images(options.data, preparation, options.split, classes=network.classes or None)
    test = None
    if options.test is not None:
        classes = images.classes or network.classes or None
        test = open_images(options.test, images.preparation, options.test_split, classes=classes)
        test.require_labels()

    reading = images.batches(_BATCH_SIZE, options.samples, options.seed, "reading images to calibrate on")
    calibration = torch.cat([inputs for inputs, _ in reading])  # [samples, C, H, W]
    if options.distill and len(images) < 2:
        raise InputError("--distill", options.distill, "needs at least two images: one to train on, one to choose on")
    dense_sizes = rehearse(network.model, calibration[:1])
    say(f"Converting {network.name} to {options.budget}, calibrated on {len(calibration)} images")
    with budget_as_typed(options.budget):
        converted = conversion.convert(network.model, calibration, budget=budget, samples=len(calibration))
    stages = {"dense": network.model, "separable": converted.model}
    if options.distill:
        stages["separable"] = copy.deepcopy(converted.model)
        stages["distilled"] = distill(converted.model, network.model, images, options)

    about = {
        "source": network.name,
        "weights": "as the source makes them" if options.weights is None else options.weights.name,
        "preparation": images.preparation.to_json(),
        "classes": images.classes or network.classes,
        "input_shape": [1, *calibration.shape[1:]],
        "conversion": {"budget": budget, "images": len(calibration), "seed": options.seed, **converted.to_json()},
    }
    if test is not None:
        tops = {name: accuracy(m, test.batches(256, description=f"testing {name}")).top1 for name, m in stages.items()}
        about["measured"] = {"test": str(options.test.name), "top1": tops}  # type: ignore[union-attr]
    separable_sizes = write(options, converted.model, calibration[:1], about)
    sizes = {"dense": dense_sizes, "separable": separable_sizes}
    skipped = {*images.skipped, *(test.skipped if test else [])}
    data = {**about, "out": str(options.out), "file_bytes": sizes, "skipped": sorted(skipped)}
    tables = [converted.table(), summary(converted, about, sizes)]
    return Result(data, tables, f"Written to {options.out}: model.safetensors, model.json, model.onnx, report.html")


def rehearse(dense: nn.Module, example: Tensor) -> dict[str, int]:
    """Write the dense network as the separable one will be: what cannot be written is refused before the work."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            store.save(dense, folder, example=example)
            return export(dense, example, {}, Path(folder))
        except InputError as error:
            raise InputError("source", type(dense).__name__, f"cannot be saved and exported: {error.rule}") from error


def distill(student: nn.Module, teacher: nn.Module, images: ImageSet, options: Options) -> nn.Module:
    """Fine-tune against the dense network; the epoch is chosen on training images held out for that."""
    readable = images.readable()
    order = torch.randperm(len(readable), generator=torch.Generator().manual_seed(options.seed)).tolist()
    held_out = max(1, int(_VALIDATION_SHARE * len(order)))
    validation, train = ([readable[i] for i in part] for part in (order[:held_out], order[held_out:]))
    if not train:
        raise InputError(
            "--distill", options.distill, f"needs at least two readable images, and there are {len(order)}"
        )
    torch.manual_seed(options.seed)
    # a last batch of one image would give batch norm nothing to estimate from
    shuffled = DataLoader(Subset(images, train), _BATCH_SIZE, shuffle=True, drop_last=len(train) > _BATCH_SIZE)
    held = DataLoader(Subset(images, validation), _BATCH_SIZE)
    return conversion.distill(student, teacher, shuffled, held, epochs=options.distill)[0]


def write(options: Options, model: nn.Module, example: Tensor, about: dict[str, Any]) -> dict[str, int]:
    """The folder, whole or not at all; both forms are loaded again and compared before it takes its name."""
    failure = None
    with atomic.folder_beside(options.out, overwrite=options.overwrite, argument="--out") as beside:
        store.save(model, beside, example=example, about=about)
        report.conversion_page(about, beside / "report.html")
        try:
            return export(model, example, about, beside)
        except InputError as error:
            failure = error  # the network is trained and saved: it is kept, without the form that failed
    rule = f"the network is saved in {options.out}, without it: {failure.rule}"
    raise InputError("model.onnx", "could not be written", rule) from failure


def export(model: nn.Module, example: Tensor, about: dict[str, Any], folder: Path) -> dict[str, int]:
    """model.onnx beside the saved network; the size of each file in bytes."""
    export_onnx(model, example, folder / "model.onnx", about=about)
    return {file.name: file.stat().st_size for file in sorted(folder.glob("model.*"))}


def summary(converted, about: dict[str, Any], sizes: dict[str, dict[str, int]]) -> Table:
    """Dense against separable, in one small table."""
    table = Table(title="Dense against separable", title_justify="left")
    for heading in ("", "dense", "separable", "ratio"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for unit, before, after in (
        ("MMACs", converted.macs_before / 1e6, converted.macs_after / 1e6),
        ("thousand parameters", converted.params_before / 1e3, converted.params_after / 1e3),
    ):
        table.add_row(unit, f"{before:,.2f}", f"{after:,.2f}", f"{after / before:.3f}")
    tops = about.get("measured", {}).get("top1", {})
    for name, top1 in tops.items():
        if name != "dense":
            table.add_row(
                f"top-1, {name}", f"{tops['dense']:.2%}", f"{top1:.2%}", f"{(top1 - tops['dense']) * 100:+.2f} points"
            )
    for file in ("model.safetensors", "model.onnx"):
        before, after = sizes["dense"][file], sizes["separable"][file]
        table.add_row(file, f"{before / 1e6:.2f} MB", f"{after / 1e6:.2f} MB", f"{after / before:.3f}")
    return table


def parse_budget(text: str) -> dict[str, float]:
    """ "macs=0.6" as {"macs": 0.6}; what the keys may be is the library's to say."""
    key, _, value = text.partition("=")
    try:
        if key.strip() not in MEASURES:
            raise ValueError
        budget = {key.strip(): float(value)}
    except ValueError:
        raise InputError("--budget", text, "must be KEY=NUMBER, as macs=0.6, params=0.5 or latency=0.7") from None
    with budget_as_typed(text):
        read_budget(budget)
    return budget


@contextmanager
def budget_as_typed(text: str) -> Iterator[None]:
    """What the library says of the budget, said of the option."""
    try:
        yield
    except InputError as error:
        if error.argument != "budget":
            raise
        raise InputError("--budget", text, error.rule) from error
