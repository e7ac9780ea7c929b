"""The page of a profile, from the plain data that `Profile.to_json()` gives."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from separable.report import plots
from separable.report.page import Markup, Section, table, write_page

_BARS = 32  # more are not read; the rest is one bar


def profile_page(data: Mapping[str, Any], file: str | Path) -> Path:
    """Write one self-contained HTML page of what a network costs.

    Args:
        data: `Profile.to_json()`, with "network", a name for it, where there is one.
        file: where; written beside and renamed.

    Returns:
        The path written.

    Raises:
        InputError: `file` cannot be written, or jinja2 or matplotlib is not installed.
    """
    machine, layers = data["machine"], data["layers"]
    facts = [
        (f"{data['network_ms']:.2f} ms", "one forward pass, measured"),
        (f"{data['predicted_ms']:.2f} ms", "the roof: what this machine's limits allow"),
        (f"{data['macs'] / 1e6:,.2f} M", "multiply-adds"),
        (f"{data['params']:,}", "parameters"),
        (f"{data['bytes'] / 1e6:,.1f} MB", "moved at least"),
    ]
    subtitle = (
        f"{machine['device']}, {machine['threads']} {'thread' if machine['threads'] == 1 else 'threads'}, "
        f"torch {data['torch']}; medians of {data['repeats']} passes, "
        f"whose middle half spans {data['spread']:.0%} of the median"
        f"{'. The machine was busy: take times as rough' if data['busy'] else ''}"
    )
    sections = [
        Section("Where the time goes", _time_parts(data, layers)),
        Section("How far from the roof", [_roofline(machine, layers), _roof_text(machine)]),
        *_separable_section(layers),
        *_subnormal_section(data.get("subnormal", [])),
        Section("Every layer", [_layer_table(data, layers), *_by_kind(data, layers)]),
        Section("How this was measured", _method(data)),
    ]
    return write_page(file, str(data.get("network", "Profile")), sections, subtitle=subtitle, facts=facts)


def _time_parts(data: Mapping, layers: Sequence[Mapping]) -> list[str]:
    ranked = sorted(layers, key=lambda layer: -layer["measured_ms"])
    shown = {id(layer) for layer in (ranked if len(ranked) <= _BARS else ranked[: _BARS - 1])}
    first = [layer for layer in layers if id(layer) in shown]
    rest = [layer for layer in layers if id(layer) not in shown]
    labels = [_name(layer) for layer in first]
    values = [layer["measured_ms"] for layer in first]
    marks = [layer["predicted_ms"] for layer in first]
    groups = [layer["bound"] for layer in first]
    if rest:
        labels.append(f"{len(rest)} smaller layers")
        values.append(sum(layer["measured_ms"] for layer in rest))
        marks.append(sum(layer["predicted_ms"] for layer in rest))
        groups.append("several")
    bound: dict[str, float] = defaultdict(float)
    for layer in layers:
        bound[layer["bound"]] += layer["measured_ms"]
    shares = ", ".join(
        f"{word} {ms / data['layers_ms']:.0%}" for word, ms in sorted(bound.items(), key=lambda x: -x[1])
    )
    spared = f"; layers that run as one spare {data['fused_ms']:.2f} ms of it" if data["fused_ms"] else ""
    title = "Time of each layer in the order it runs, coloured by what bounds it; the stroke is the roof"
    return [
        f"The layers take {data['layers_ms']:.2f} ms of the network's {data['network_ms']:.2f} ms; "
        f"{data['interrupted_ms']:.2f} ms went to other work on the machine, {data['outside_ms']:.2f} ms to Python and "
        f"the way from a call to its kernel{spared}. Time by what bounds it: {shares}.",
        plots.bars(labels, values, unit="ms", title=title, marks=marks, mark_name="the roof", groups=groups),
    ]


def _roofline(machine: Mapping, layers: Sequence[Mapping]) -> Markup:
    points = [
        {
            "name": _name(layer),
            "group": layer["kind"],
            "intensity": layer["intensity"],
            "gflops": (2 * layer["macs"] + layer["other_ops"]) / layer["measured_ms"] / 1e6,
        }
        for layer in layers
        if layer["measured_ms"] > 0 and layer["macs"] > 0
    ]
    cache = machine["cache_gb_s"] if machine["cache_gb_s"] > 1.1 * machine["bandwidth_gb_s"] else None
    return plots.roofline(points, machine["peak_gflops"], machine["bandwidth_gb_s"], cache)


def _roof_text(machine: Mapping) -> str:
    return (
        f"Measured here: {machine['peak_gflops']:.0f} GFLOP/s in float32, {machine['bandwidth_gb_s']:.1f} GB/s from "
        f"memory, {machine['cache_gb_s']:.1f} GB/s within the caches. A layer whose tensors fit in "
        f"{machine['cache_bytes'] / 2**20:.0f} MiB of cache is held against the roof of the caches."
    )


def _separable_section(layers: Sequence[Mapping]) -> list[Section]:
    dense = [layer for layer in layers if layer.get("separable")]
    if not dense:
        return []
    columns = ["layer", "kernel", "M MACs dense", "M MACs separable", "ratio", "ms dense", "ms separable", "time ratio"]
    rows = [
        [
            _name(layer), "x".join(map(str, layer["weight_shape"][2:])), f"{s['dense_macs'] / 1e6:,.2f}",
            f"{s['macs'] / 1e6:,.2f}", f"{s['macs_ratio']:.0%}", f"{s['dense_ms']:.3f}", f"{s['ms']:.3f}",
            f"{s['ms_ratio']:.0%}",
        ]
        for layer in dense
        for s in [layer["separable"]]
    ]  # fmt: skip
    sums = {n: sum(x["separable"][n] for x in dense) for n in ("dense_macs", "macs", "dense_ms", "ms")}
    total = [
        "together", "", f"{sums['dense_macs'] / 1e6:,.2f}", f"{sums['macs'] / 1e6:,.2f}",
        f"{sums['macs'] / sums['dense_macs']:.0%}", f"{sums['dense_ms']:.3f}", f"{sums['ms']:.3f}",
        f"{sums['ms'] / sums['dense_ms']:.0%}",
    ]  # fmt: skip
    said = (
        "Each dense convolution beside a separable layer of the same shape (depthwise first, depth multiplier 1, "
        "random weights), on the same input, one call of each, in turn. Ratios are the separable layer's share of the "
        "dense one's."
    )
    return [Section("What separable layers would save", [said, table(columns, rows, total=total)])]


def _subnormal_section(found: Sequence[Mapping]) -> list[Section]:
    if not found:
        return []
    said = (
        "Some processors, Intel's among them, take up to a hundred times as long for numbers below 1e-38. "
        "torch.set_flush_denormal(True) at the start of a process, or separable.accelerate, takes them for zeros."
    )
    rows = [[row["layer"] or "(top)", row["tensor"], f"{row['share']:.2%}"] for row in found]
    return [Section("Subnormal numbers", [said, table(["layer", "numbers", "share subnormal"], rows)])]


def _layer_table(data: Mapping, layers: Sequence[Mapping]) -> Markup:
    columns = ["layer", "kind", "output", "parameters", "M MACs", "M MACs to train", "MB moved", "FLOPs a byte", "ms",
               "roof, ms", "bound by"]  # fmt: skip
    rows = [
        [
            _name(layer), layer["kind"], "×".join(map(str, layer["output_shape"])), layer["params"],
            _millions(layer["macs"]), _millions(layer["training_macs"]), f"{layer['bytes'] / 1e6:,.2f}",
            f"{layer['intensity']:,.1f}", f"{layer['measured_ms']:.3f}", f"{layer['predicted_ms']:.3f}", layer["bound"],
        ]
        for layer in layers
    ]  # fmt: skip
    total = [
        "whole network", "", "", data["params"], _millions(data["macs"]), _millions(data["training_macs"]),
        f"{data['bytes'] / 1e6:,.2f}", f"{data['intensity']:,.1f}", f"{data['network_ms']:.3f}",
        f"{data['predicted_ms']:.3f}", "",
    ]  # fmt: skip
    return table(columns, rows, "In the order they run", total)


def _by_kind(data: Mapping, layers: Sequence[Mapping]) -> list[Markup]:
    kinds: dict[str, list[Mapping]] = defaultdict(list)
    for layer in layers:
        kinds[layer["kind"]].append(layer)
    rows = [
        [
            kind, len(some), _millions(sum(x["macs"] for x in some)),
            f"{sum(x['macs'] for x in some) / max(data['macs'], 1):.1%}", f"{sum(x['measured_ms'] for x in some):.3f}",
            f"{sum(x['measured_ms'] for x in some) / data['layers_ms']:.1%}",
        ]
        for kind, some in sorted(kinds.items(), key=lambda item: -sum(x["measured_ms"] for x in item[1]))
    ]  # fmt: skip
    columns = ["kind", "layers", "M MACs", "share of MACs", "ms", "share of time"]
    return [table(columns, rows, "The same by kind, longest first")]


def _method(data: Mapping) -> list[str]:
    return [
        f"The network ran in evaluation mode without gradients, {data['repeats']} times whole and as often with each "
        "operation timed in its place, in turn; times are medians. Counts come from the meta device: one MAC is two "
        "FLOPs; bytes are each input, weight and output once for each call.",
        "The roof of a layer is the larger of its FLOPs over the peak rate and its bytes over the bandwidth. It is "
        "bound by compute or memory, whichever that is, unless the roof explains less than half of its time: then by "
        "overhead, which is the cost of a call, or a kernel that does not reach what the machine can do.",
    ]


def _name(layer: Mapping) -> str:
    return layer["name"] or f"(top) {layer['kind']}"


def _millions(value: int) -> str | None:
    return f"{value / 1e6:,.2f}" if value else None
