"""Networks side by side: milliseconds in every runtime, memory, size on paper and on disk, accuracy; tables, a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from separable import cost, runtimes, store
from separable.commands.evaluate import accuracy, check_classes
from separable.commands.image import open_test
from separable.commands.measuring import Job, Named, inputs_of, measured
from separable.commands.network import Network, numbers, open_network, sides_of
from separable.commands.profile import check_page, check_threads
from separable.commands.result import Result
from separable.conversion.headline import points_in_words
from separable.data.images import Preparation
from separable.errors import InputError
from separable.inputs import own_copy
from separable.progress import say
from separable.runtimes import threads_in_words


@dataclass
class Options:
    """What `separable benchmark` was asked for."""

    sources: list[str]
    weights: list[Path]
    batches: list[int]
    threads: list[int]
    shapes: list[str]
    runtimes: list[str]
    rounds: int
    images: dict[str, str | None]  # size, mean, std as typed
    data: str | None
    split: str | None
    out: Path | None


def run(options: Options) -> Result:
    """Check all that can be wrong, then count, then evaluate, then measure: what takes long comes last."""
    names = chosen_runtimes(options.runtimes)
    threads = list(dict.fromkeys(options.threads)) or [1]
    for number in threads:
        check_threads(number)
    if options.out is not None:
        check_page(options.out, "--out")
    if options.split is not None and options.data is None:
        raise InputError("--split", options.split, "goes with --data")
    opened = open_all(options)
    rows = [on_paper(named, network) for named, network in opened]
    if options.data is not None:
        for row, (named, network) in zip(rows, opened, strict=True):
            row["accuracy"] = measured_accuracy(named, network, options)
    batches = list(dict.fromkeys(options.batches)) or [_batch_of(options.shapes)]
    found = []
    for number in threads:
        say(f"Measuring on {threads_in_words(number)} in a process of its own")
        found += measured(Job([named for named, _ in opened], batches, number, names, options.rounds))
    data: dict[str, Any] = {"networks": rows, "data": options.data, "measured": found}
    data["conclusions"] = conclusions(data)
    closing = "\n".join(data["conclusions"])
    if options.out is not None:
        from separable import report

        report.benchmark_page(data, options.out)
        closing = f"Page written: {options.out}\n{closing}"
    tables = [table_of(rows), *(runtimes.table_of(part, f"batch {part['batch']}") for part in found)]
    return Result({**data, "out": None if options.out is None else str(options.out)}, tables, closing)


def chosen_runtimes(names: list[str]) -> list[str] | None:
    """None for all; each name of its own or with commas between them."""
    asked = [part.strip() for name in names for part in name.split(",")]
    try:
        runtimes.choose(asked or None)
    except InputError as error:
        raise InputError("--runtimes", error.value, error.rule) from None
    return asked or None


def open_all(options: Options) -> list[tuple[Named, Network]]:
    """Each network under a name that no other has; --weights are for those that are not saved folders, in order."""
    weights, opened, names = list(options.weights), [], set()
    for source in options.sources:
        is_saved = store.network_folder(Path(source)).is_dir()
        file = weights.pop(0) if weights and not is_saved else None
        network = open_network(source, file)
        name = network.name if network.name not in names else source
        while name in names:
            name += ", again"
        names.add(name)
        opened.append((Named(name, source, file, shapes_of(network, options)), network))
    if weights:
        rule = "is left over: give one for each network that is not a saved folder, in their order"
        raise InputError("--weights", weights[0], rule)
    return opened


def shapes_of(network: Network, options: Options) -> list[tuple[int, ...]]:
    """Of the network's inputs, without the batch: as --shape says, else --size, else the source."""
    if options.shapes:
        return [tuple(_dims(shape)[1:]) for shape in options.shapes]
    known, size = network.input_shape, options.images["size"]
    if known is not None and size is None:
        return [tuple(known[1:])]
    settings = network.preparation
    if isinstance(settings, Mapping):
        settings = Preparation.from_settings(settings)
    sides = sides_of(size) if size else getattr(settings, "size", None)
    channels = known[1] if known else getattr(settings, "channels", None)
    if not sides or not channels:
        rule = f"{network.name} does not say what it takes; give the whole input, batch first, as 1,3,224,224"
        raise InputError("--shape", "not given", rule)
    return [(channels, *(sides * 2 if len(sides) == 1 else sides))]


def _dims(shape: str) -> list[int]:
    dims = numbers("--shape", shape, int)
    if min(dims) < 1:
        raise InputError("--shape", shape, "must be the whole input, batch first, as 1,3,224,224")
    return dims


def _batch_of(shapes: list[str]) -> int:
    return _dims(shapes[0])[0] if shapes else 1


def on_paper(named: Named, network: Network) -> dict[str, Any]:
    """Parameters, multiply-adds, and bytes on disk: of the file where there is one, else of the tensors."""
    model, folder = network.model, store.network_folder(Path(named.source))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}.values()
    file = folder / store.WEIGHTS if folder.is_dir() else named.weights
    return {
        "name": named.name,
        "source": named.source,
        "input_shapes": [list(shape) for shape in named.shapes],
        "params": sum(p.numel() for p in model.parameters()),
        "macs": _macs(model, inputs_of(named, model, 1)),
        "file_bytes": file.stat().st_size if file else sum(t.numel() * t.element_size() for t in tensors),
    }


def _macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int | None:
    """Of one example; None for a network that runs but cannot be followed without being run."""
    try:
        return cost.count(model, inputs).macs
    except InputError as misfit:
        try:
            with torch.no_grad():
                model(*own_copy(inputs))
        except Exception:
            raise misfit from None
    return None


def measured_accuracy(named: Named, network: Network, options: Options) -> dict[str, Any]:
    """Top-1 in float32 torch, on images prepared as the network's source says."""
    assert options.data is not None
    test = open_test(network, options.data, options.split, **options.images)
    counts = accuracy(network.model, test.batches(256, description=f"evaluating {named.name}"))
    check_classes(network, test, counts.classes)
    return {"top1": counts.top1, "images": counts.examples, "skipped": len(test.skipped)}


def conclusions(data: Mapping[str, Any]) -> list[str]:
    """The lines that matter: each network beside the first, in the fastest float32 runtime of each."""
    first, *others = data["networks"]
    said = []
    for part in data["measured"]:
        where = f"batch {part['batch']}, {threads_in_words(part['threads'])}"
        best = {row["network"]: row for row in part["rows"] if part["fastest"][row["network"]] == row["runtime"]}
        missing = [row["name"] for row in data["networks"] if row["name"] not in best]
        said += [f"{name} ran in no float32 runtime that was asked for ({where})" for name in missing]
        if first["name"] in missing:
            continue
        mine = best[first["name"]]
        if not others:
            said.append(f"{first['name']} takes {mine['ms']:.3f} ms in {mine['runtime']}, its fastest here ({where})")
        said += [_beside(best[row["name"]], mine, where) + _points(row, first) for row in others if row["name"] in best]
    return said


def _beside(row: Mapping[str, Any], first: Mapping[str, Any], where: str) -> str:
    same = row["runtime"] == first["runtime"]
    place = f"{row['runtime']}, {where}" if same else f"{row['runtime']} against {first['runtime']}, {where}"
    faster = row["times_as_fast"]
    if faster < 1:
        return f"{row['network']} takes {1 / faster:.2f} times as long as the fastest {first['network']} here ({place})"
    return f"{row['network']} is {faster:.2f} times as fast as the fastest {first['network']} here ({place})"


def _points(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    if "accuracy" not in row:
        return ""
    return f"; {points_in_words(100 * (row['accuracy']['top1'] - first['accuracy']['top1']))}"


def table_of(rows: list[dict[str, Any]]) -> Table:
    """What can be said of each network without a clock."""
    table = Table(title="On paper and on disk", title_justify="left")
    for heading in ("network", "parameters", "MMACs", "MB", *(["top-1"] if "accuracy" in rows[0] else [])):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in rows:
        macs = "" if row["macs"] is None else f"{row['macs'] / 1e6:,.2f}"
        top1 = [f"{row['accuracy']['top1']:.2%}"] if "accuracy" in row else []
        table.add_row(row["name"], f"{row['params']:,}", macs, f"{row['file_bytes'] / 1e6:,.3f}", *top1)
    return table
