"""The pages of a converted network: one for `separable convert`, one for the demo, from the plain data they print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from separable.report import plots
from separable.report.comparison_parts import by_speed, comparison_parts, threads_of
from separable.report.page import Section, table, write_page
from separable.report.who_pays_page import who_pays_sections

_BARS = 40  # more are not read; the table below them has every layer


def conversion_page(data: Mapping[str, Any], file: str | Path, pictures: Mapping[int, Any] | None = None) -> Path:
    """Write one self-contained HTML page of what became of a network.

    Args:
        data: what `separable convert --json` prints: "source", "headline", "conversion" (`Conversion.to_json()` with
            "budget", "images" and "seed"), "measured" where top-1 was, "pareto", and "who_pays" (`WhoPays.to_json()`).
        file: where; written beside and renamed.
        pictures: of examples, by their index, as `WhoPays.pictures()` gives them.

    Raises:
        InputError: `file` cannot be written, or jinja2 or matplotlib is not installed.
    """
    conversion, tops = data["conversion"], data.get("measured", {}).get("top1", {})
    facts = [_speed_fact(conversion), *((f"{top1:.2%}", f"top-1, {name}") for name, top1 in tops.items())]
    facts += _cost_facts(conversion)
    subtitle = (
        f"{_budget(conversion['budget'])}; calibrated on {conversion['images']:,} images, seed {conversion['seed']}"
    )
    sections = [Section("What it comes to", [f"{data['headline']}."]), time_section(conversion)]
    if data.get("pareto"):
        sections.append(pareto_section(data["pareto"]))
    sections += layer_sections(conversion)
    pays = data.get("who_pays")
    if pays is not None:
        sections += who_pays_sections(pays, pictures)
        if "distilled" in tops:
            sections.append(Section("Before and after distillation", [_BEFORE_DISTILLATION]))
    return write_page(file, f"{data['source']}, made separable", sections, subtitle=subtitle, facts=facts)


_BEFORE_DISTILLATION = (
    "Who pays was asked of the network before distillation: afterwards every layer has adapted to every other, and "
    "taking one back says little of what it lost."
)


def demo_page(data: Mapping[str, Any], file: str | Path) -> Path:
    """Write the demo's page: its networks side by side, then what became of each layer. `data` is what it prints."""
    networks, comparison = data["networks"], data["comparison"]
    names = list(networks)
    dense, last = networks["dense"], networks[names[-1]]
    where = threads_of(comparison)
    facts = [
        (f"{data['times_as_fast']:.2f}×", "as fast as the fastest dense network here"),
        (f"{dense['top1']:.1%} → {last['top1']:.1%}", "top-1, dense to separable"),
        (f"{last['macs'] / dense['macs']:.0%}", "of the multiply-adds"),
        (f"{last['params'] / dense['params']:.0%}", "of the parameters"),
    ]
    rows: list[list[Any]] = [
        ["top-1", *(f"{networks[n]['top1']:.1%}" for n in names)],
        *([f"ms an image, {way}", *(_demo_ms(networks[n], way) for n in names)] for way in data["shown_in"]),
        ["multiply-adds", *(f"{networks[n]['macs'] / 1e6:.2f} M" for n in names)],
        ["parameters", *(f"{networks[n]['params']:,}" for n in names)],
        ["model.safetensors", *(f"{networks[n]['file_bytes'] / 1e3:.0f} kB" for n in names)],
    ]
    learning = plots.curves(
        {
            "distillation, validation": _curve(data["history"], "accuracy"),
            "dense, validation": ([0, len(data["history"]) - 1], [data["dense_validation_top1"]] * 2),
        },
        x="epoch",
        y="top-1",
        title="Distillation against the dense network, on images that neither was trained on",
    )
    sections = [
        Section("Dense against separable", [f"{data['headline']}.", table(["", *names], rows)]),
        Section(
            "In every runtime here",
            comparison_parts(comparison, f"One image, {where}", by_speed(comparison, names[-1])),
        ),
        Section("What distillation adds", [learning]),
        *layer_sections(data["conversion"]),
    ]
    subtitle = (
        f"5,000 real digits: {data['split']['train']:,} to train on, {data['split']['validation']:,} to choose on, "
        f"{data['split']['test']:,} to test on; seed {data['seed']}"
    )
    return write_page(file, "Digits, dense and separable", sections, subtitle=subtitle, facts=facts)


def time_section(conversion: Mapping[str, Any]) -> Section:
    """Dense and separable in each runtime: the fastest first, then torch, then ONNX Runtime, then the others."""
    comparison = conversion["comparison"]
    where = threads_of(comparison)
    versions = ", ".join(f"{name} {version}" for name, version in comparison["versions"].items())
    parts = comparison_parts(comparison, f"Batch {conversion['batch']}, {where}", by_speed(comparison, "separable"))
    return Section("Dense and separable in the same runtime", [*parts, f"{comparison['processor']}; {versions}."])


def pareto_section(points: Sequence[Mapping[str, Any]]) -> Section:
    """Accuracy against time, a point a network; the dense one is the first."""
    shown = sorted(points, key=lambda one: one["ms"])
    curve = plots.curves(
        {"top-1": ([one["ms"] for one in shown], [100 * one["top1"] for one in shown])},
        x="ms a call",
        y="top-1, %",
        title="Accuracy against time; the slowest point is the dense network in its fastest runtime",
    )
    rows = [
        [
            one["name"], f"{one['ms']:.3f}", f"{one['times_as_fast']:.2f}", f"{one['top1']:.2%}",
            f"{one['macs'] / 1e6:,.2f}", one["params"],
        ]
        for one in points
    ]  # fmt: skip
    columns = ["network", "ms", "times as fast", "top-1", "M MACs", "parameters"]
    said = "Each network was calibrated for its share of the dense network's time, without a gradient step."
    return Section("Accuracy against time", [curve, said, table(columns, rows)])


def layer_sections(conversion: Mapping[str, Any]) -> list[Section]:
    """What became of each layer: its milliseconds, or where none were taken its multiply-adds, and a table."""
    columns = [
        "layer", "form", "rank", "error", "ms before", "ms after", "M MACs before", "M MACs after",
        "parameters before", "after", "note",
    ]  # fmt: skip
    layers = conversion["layers"]
    rows = [
        [
            layer["name"], _form(layer), layer["rank"], None if layer["error"] is None else f"{layer['error']:.2%}",
            _ms(layer["ms_before"]), _ms(layer["ms_after"]), f"{layer['macs_before'] / 1e6:.2f}",
            f"{layer['macs_after'] / 1e6:.2f}", layer["params_before"], layer["params_after"], layer["note"],
        ]
        for layer in layers
    ]  # fmt: skip
    target = conversion["target"]
    whole = {row["network"]: row["ms"] for row in conversion["comparison"]["rows"] if row["runtime"] == target}
    total = [
        "whole network", "", None, None, _ms(whole.get("dense")), _ms(whole.get("separable")),
        f"{conversion['macs_before'] / 1e6:.2f}", f"{conversion['macs_after'] / 1e6:.2f}",
        conversion["params_before"], conversion["params_after"], "",
    ]  # fmt: skip
    said = (
        "The error is the share of a layer's output variance, after its norm, shortcut and ReLU, that the new form "
        "misses on the calibration images, with all that earlier layers have lost. Milliseconds of a layer are taken "
        f"in {target} together with its norm and activation and hold a call of their own, so that they add up to more "
        "than those of the whole network, which is timed in one piece."
    )
    return [Section("What became of each layer", [_layer_bars(conversion), said, table(columns, rows, total=total)])]


def _layer_bars(conversion: Mapping[str, Any]) -> str:
    """Milliseconds in the target, or multiply-adds where layers were not timed; the layers that cost most."""
    timed = [layer for layer in conversion["layers"] if layer["ms_before"] is not None]
    measure, unit, scale = "ms", "ms", 1.0
    title = f"Milliseconds of each layer in {conversion['target']} after conversion; the stroke is the dense layer"
    if not timed:
        timed, measure, unit, scale = conversion["layers"], "macs", "million multiply-adds", 1e-6
        title = "Multiply-adds of each layer after conversion; the stroke is the dense layer"
    largest = sorted(timed, key=lambda layer: -layer[f"{measure}_before"])[:_BARS]
    first = [layer for layer in timed if any(layer is s for s in largest)]
    before = [layer[f"{measure}_before"] * scale for layer in first]
    after = [layer[f"{measure}_after"] for layer in first]
    return plots.bars(
        [layer["name"] for layer in first],
        [b if a is None else a * scale for a, b in zip(after, before, strict=True)],
        unit=unit,
        title=title,
        marks=before,
        mark_name="dense",
        groups=[_form(layer) for layer in first],
    )


def _form(layer: Mapping[str, Any]) -> str:
    return layer["form"] or "left dense"


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _demo_ms(network: Mapping[str, Any], runtime: str) -> str | None:
    return _ms(network["ms"].get(runtime))


def _budget(budget: Mapping[str, float]) -> str:
    return "Budget: " + ", ".join(f"{measure} {amount:g}" for measure, amount in budget.items())


def _speed_fact(conversion: Mapping[str, Any]) -> tuple[str, str]:
    return (f"{conversion['times_as_fast']:.2f}×", "as fast as the fastest dense network here")


def _cost_facts(conversion: Mapping[str, Any]) -> list[tuple[str, str]]:
    macs = f"{conversion['macs_after'] / conversion['macs_before']:.1%}"
    params = f"{conversion['params_after'] / conversion['params_before']:.1%}"
    return [(macs, "of the multiply-adds"), (params, "of the parameters")]


def _curve(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    return [epoch["epoch"] for epoch in history], [epoch[key] for epoch in history]
