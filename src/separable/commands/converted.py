"""The tables that `separable convert` and `demo` show of a converted network at their end."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from separable.report.comparison_parts import by_speed
from separable.runtimes import threads_in_words


def times_table(conversion: Mapping[str, Any]) -> Table:
    """Dense and separable in each runtime: the fastest first, then torch, then ONNX Runtime, then the others."""
    comparison = conversion["comparison"]
    where = f"batch {conversion['batch']}, {threads_in_words(comparison['threads'])}"
    table = Table(title=f"Milliseconds a call, {where}", title_justify="left")
    for heading in ("runtime", "dense", "separable", "times as fast"):
        table.add_column(heading, justify="left" if heading == "runtime" else "right")
    for runtime in by_speed(comparison, "separable"):
        dense, converted = (_ms(comparison, network, runtime) for network in ("dense", "separable"))
        shown = ["none" if ms is None else f"{ms:.3f}" for ms in (dense, converted)]
        table.add_row(runtime, *shown, f"{dense / converted:.2f}" if dense and converted else "")
    table.caption = "The machine was busy: take times as rough." if comparison["busy"] else None
    return table


def _ms(comparison: Mapping[str, Any], network: str, runtime: str) -> float | None:
    found = (row["ms"] for row in comparison["rows"] if (row["network"], row["runtime"]) == (network, runtime))
    return next(found, None)


def summary(about: Mapping[str, Any], sizes: Mapping[str, Mapping[str, int]]) -> Table:
    """Dense against separable on paper, on disk, and in accuracy where that was measured."""
    conversion = about["conversion"]
    table = Table(title="Dense against separable", title_justify="left")
    for heading in ("", "dense", "separable", "ratio"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for unit, measure, size in (("MMACs", "macs", 1e6), ("thousand parameters", "params", 1e3)):
        before, after = (conversion[f"{measure}_{when}"] / size for when in ("before", "after"))
        table.add_row(unit, f"{before:,.2f}", f"{after:,.2f}", f"{after / before:.3f}")
    tops = about.get("measured", {}).get("top1", {})
    for name, top1 in tops.items():
        if name != "dense":
            lost = f"{(top1 - tops['dense']) * 100:+.2f} points"
            table.add_row(f"top-1, {name}", f"{tops['dense']:.2%}", f"{top1:.2%}", lost)
    for file in ("model.safetensors", "model.onnx"):
        before, after = sizes["dense"][file], sizes["separable"][file]
        table.add_row(file, f"{before / 1e6:.2f} MB", f"{after / 1e6:.2f} MB", f"{after / before:.3f}")
    return table
