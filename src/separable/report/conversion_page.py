"""The pages of a converted network: one for `separable convert`, one for the demo, from the plain data they print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from separable.report import plots
from separable.report.page import Section, table, write_page

_BARS = 40  # more are not read; the table below them has every layer


def conversion_page(data: Mapping[str, Any], file: str | Path) -> Path:
    """Write one self-contained HTML page of what became of a network.

    Args:
        data: what `separable convert --json` prints: "source", "conversion" (`Conversion.to_json()` with "budget",
            "images" and "seed"), and "measured" where top-1 was.
        file: where; written beside and renamed.

    Raises:
        InputError: `file` cannot be written, or jinja2 or matplotlib is not installed.
    """
    conversion, tops = data["conversion"], data.get("measured", {}).get("top1", {})
    facts = [(f"{top1:.2%}", f"top-1, {name}") for name, top1 in tops.items()] + _cost_facts(conversion)
    subtitle = (
        f"{_budget(conversion['budget'])}; calibrated on {conversion['images']:,} images, seed {conversion['seed']}"
    )
    return write_page(
        file, f"{data['source']}, made separable", layer_sections(conversion), subtitle=subtitle, facts=facts
    )


def demo_page(data: Mapping[str, Any], file: str | Path) -> Path:
    """Write the demo's page: its networks side by side, then what became of each layer. `data` is what it prints."""
    networks = data["networks"]
    names = list(networks)
    dense = networks["dense"]
    last = networks[names[-1]]
    facts = [
        (f"{dense['top1']:.1%} → {last['top1']:.1%}", "top-1, dense to separable"),
        (f"{last['macs'] / dense['macs']:.0%}", "of the multiply-adds"),
        (f"{last['params'] / dense['params']:.0%}", "of the parameters"),
        (f"{dense['latency_ms']['onnxruntime'] / last['latency_ms']['onnxruntime']:.2f}×", "as fast in ONNX Runtime"),
    ]
    rows = [
        ["top-1", *(f"{networks[n]['top1']:.1%}" for n in names)],
        ["multiply-adds", *(f"{networks[n]['macs'] / 1e6:.2f} M" for n in names)],
        ["parameters", *(f"{networks[n]['params']:,}" for n in names)],
        ["model.safetensors", *(f"{networks[n]['file_bytes'] / 1e3:.0f} kB" for n in names)],
        ["torch, one thread", *(f"{networks[n]['latency_ms']['torch']:.3f} ms" for n in names)],
        ["ONNX Runtime, one thread", *(f"{networks[n]['latency_ms']['onnxruntime']:.3f} ms" for n in names)],
    ]
    ways = [(n, way) for way in ("torch", "onnxruntime") for n in names]
    title = "Milliseconds for one image on one thread"
    bars = plots.bars(
        [f"{n} ({way})" for n, way in ways],
        [networks[n]["latency_ms"][way] for n, way in ways],
        unit="ms",
        title=title,
        groups=[way for _, way in ways],
    )
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
        Section("Dense against separable", [table(["", *names], rows), bars]),
        Section("What distillation adds", [learning]),
        *layer_sections(data["conversion"]),
    ]
    subtitle = (
        f"5,000 real digits: {data['split']['train']:,} to train on, {data['split']['validation']:,} to choose on, "
        f"{data['split']['test']:,} to test on; seed {data['seed']}"
    )
    return write_page(file, "Digits, dense and separable", sections, subtitle=subtitle, facts=facts)


def layer_sections(conversion: Mapping[str, Any]) -> list[Section]:
    """What became of each layer: a plot of its multiply-adds before and after, and a table."""
    layers = conversion["layers"]
    shown = sorted(layers, key=lambda layer: -layer["macs_before"])[:_BARS]
    first = [layer for layer in layers if any(layer is s for s in shown)]
    bars = plots.bars(
        [layer["name"] for layer in first],
        [layer["macs_after"] / 1e6 for layer in first],
        unit="million multiply-adds",
        title="Multiply-adds of each layer after conversion; the stroke is the dense layer",
        marks=[layer["macs_before"] / 1e6 for layer in first],
        mark_name="dense",
        groups=[_order(layer) for layer in first],
    )
    columns = ["layer", "form", "rank", "error", "M MACs before", "M MACs after", "parameters before", "after", "note"]
    rows = [
        [
            layer["name"], _order(layer), layer["rank"], f"{layer['error']:.2%}", f"{layer['macs_before'] / 1e6:.2f}",
            f"{layer['macs_after'] / 1e6:.2f}", layer["params_before"], layer["params_after"], layer["note"],
        ]
        for layer in layers
    ]  # fmt: skip
    total = [
        "whole network", "", None, "", f"{conversion['macs_before'] / 1e6:.2f}",
        f"{conversion['macs_after'] / 1e6:.2f}", conversion["params_before"], conversion["params_after"], "",
    ]  # fmt: skip
    said = "The error is the share of a layer's output variance that its new form loses on the calibration images."
    return [Section("What became of each layer", [bars, said, table(columns, rows, total=total)])]


def _order(layer: Mapping[str, Any]) -> str:
    return (layer["order"] or "left dense").replace("_", " ")


def _budget(budget: Mapping[str, float]) -> str:
    return "Budget: " + ", ".join(f"{measure} {amount:g}" for measure, amount in budget.items())


def _cost_facts(conversion: Mapping[str, Any]) -> list[tuple[str, str]]:
    macs = f"{conversion['macs_after'] / conversion['macs_before']:.1%}"
    params = f"{conversion['params_after'] / conversion['params_before']:.1%}"
    return [(macs, "of the multiply-adds"), (params, "of the parameters")]


def _curve(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    return [epoch["epoch"] for epoch in history], [epoch[key] for epoch in history]
