"""Networks in runtimes as a page shows them: bars of milliseconds and a table, from `Comparison.to_json()`."""

from collections.abc import Mapping, Sequence
from typing import Any

from separable.report import plots
from separable.report.page import Markup, table

_FIRST = ("torch", "onnxruntime")  # after the fastest: what people have, and what they deploy with


def threads_of(comparison: Mapping[str, Any]) -> str:
    return "one thread" if comparison["threads"] == 1 else f"{comparison['threads']} threads"


def by_speed(comparison: Mapping[str, Any], network: str) -> list[str]:
    """The runtimes in the order in which they are shown: the network's fastest, torch, ONNX Runtime, the others."""
    there = list(dict.fromkeys(row["runtime"] for row in comparison["rows"]))
    order = [comparison["fastest"].get(network), *_FIRST, *there]
    return [name for name in dict.fromkeys(order) if name in there]


def comparison_parts(comparison: Mapping[str, Any], title: str, runtimes: Sequence[str] | None = None) -> list[str]:
    """A plot of all times, the table, and what a reader has to know; runtimes in the order given, else as measured."""
    first = comparison["rows"][0]["network"]
    rows = _by_runtime(comparison["rows"], runtimes)
    several = len({row["network"] for row in rows}) > 1
    timed = [row for row in rows if row["ms"] is not None]
    shown: list[str] = [_bars(timed, title, several)] if timed else []
    columns = ["runtime", "network", "ms", "middle half", "times as fast", "error", "peak MB"]
    if all(row["memory_bytes"] is None for row in rows):
        columns.pop()
    shown.append(table(columns, [_cells(row)[: len(columns)] for row in rows]))
    if comparison["busy"]:
        shown.append("The machine was busy: take times as rough, and measure again when it is not.")
    fastest = comparison["fastest"][first]
    if fastest:
        shown.append(f"Times as fast: as {first} in its fastest float32 runtime, {fastest}.")
    shown += [f"{row['network']} in {row['runtime']}: {row['problem']}." for row in rows if row["problem"]]
    return shown + [f"Without {name}: {reason}." for name, reason in comparison["unusable"].items()]


def _bars(timed: Sequence[Mapping[str, Any]], title: str, several: bool) -> Markup:
    return plots.bars(
        [f"{row['runtime']}, {row['network']}" if several else row["runtime"] for row in timed],
        [row["ms"] for row in timed],
        unit="ms",
        title=f"{title}: milliseconds a call; the line spans the middle half of the calls",
        spans=[(row["low_ms"], row["high_ms"]) for row in timed],
        groups=[row["network"] for row in timed],
    )


def _by_runtime(rows: Sequence[Mapping[str, Any]], runtimes: Sequence[str] | None) -> list[Mapping[str, Any]]:
    order = list(runtimes or dict.fromkeys(row["runtime"] for row in rows))
    return sorted(rows, key=lambda row: order.index(row["runtime"]))


def _cells(row: Mapping[str, Any]) -> list[str | None]:
    memory = None if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:,.0f}"
    error = None if row["error"] is None else f"{row['error']:.0e}"
    if row["ms"] is None:
        return [row["runtime"], row["network"], None, None, None, error, memory]
    half = f"{row['low_ms']:.3f} to {row['high_ms']:.3f}"
    faster = None if row["times_as_fast"] is None else f"{row['times_as_fast']:.2f}"
    return [row["runtime"], row["network"], f"{row['ms']:.3f}", half, faster, error, memory]
