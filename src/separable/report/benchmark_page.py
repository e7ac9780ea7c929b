"""The page of networks side by side, from the plain data that `separable benchmark --json` prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from separable.report import plots
from separable.report.page import Section, table, write_page


def benchmark_page(data: Mapping[str, Any], file: str | Path) -> Path:
    """Write one self-contained HTML page of networks in runtimes.

    Args:
        data: what `separable benchmark --json` prints: "networks", "measured" (a comparison for each batch and number
            of threads), "conclusions", and "data" where accuracy was measured.
        file: where; written beside and renamed.

    Returns:
        The path written.

    Raises:
        InputError: `file` cannot be written, or jinja2 or matplotlib is not installed.
    """
    networks, measured = data["networks"], data["measured"]
    names = [row["name"] for row in networks]
    sections = [
        Section("What it comes to", [f"{line}." for line in data["conclusions"]]),
        *(Section(_title(part), _parts(part)) for part in measured),
        Section("On paper and on disk", [_on_paper(networks)]),
        Section("How this was measured", _method(data)),
    ]
    machine = measured[0]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return write_page(
        file, " and ".join(names), sections, subtitle=f"{machine['processor']}; {versions}", facts=_facts(data)
    )


def _facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of the first batch and number of threads, each network in its fastest runtime; and accuracy."""
    part, facts = data["measured"][0], []
    for row in part["rows"]:
        if part["fastest"][row["network"]] == row["runtime"]:
            facts.append((f"{row['ms']:.2f} ms", f"{row['network']}, {row['runtime']}"))
    for row in data["networks"]:
        if "accuracy" in row:
            facts.append((f"{row['accuracy']['top1']:.2%}", f"top-1, {row['name']}"))
    return facts


def _title(part: Mapping[str, Any]) -> str:
    return f"Batch {part['batch']}, {'one thread' if part['threads'] == 1 else str(part['threads']) + ' threads'}"


def _parts(part: Mapping[str, Any]) -> list[str]:
    """A plot of all times, the longest bars being the slowest, and the table."""
    first = part["rows"][0]["network"]
    names = list(dict.fromkeys(row["network"] for row in part["rows"]))
    several = len(names) > 1
    timed = [row for row in _by_runtime(part["rows"]) if row["ms"] is not None]
    shown: list[str] = []
    if timed:
        bars = plots.bars(
            [f"{row['runtime']}, {row['network']}" if several else row["runtime"] for row in timed],
            [row["ms"] for row in timed],
            unit="ms",
            title=f"{_title(part)}: milliseconds a call; the line spans the middle half of the calls",
            spans=[(row["low_ms"], row["high_ms"]) for row in timed],
            groups=[row["network"] for row in timed],
        )
        shown.append(bars)
    columns = ["runtime", "network", "ms", "middle half", "times as fast", "error", "peak MB"]
    shown.append(table(columns, [_cells(row) for row in _by_runtime(part["rows"])]))
    if part["busy"]:
        shown.append("The machine was busy: take times as rough, and measure again when it is not.")
    fastest = part["fastest"][first]
    if fastest:
        shown.append(f"Times as fast: as {first} in its fastest float32 runtime, {fastest}.")
    shown += [f"{row['network']} in {row['runtime']}: {row['problem']}." for row in part["rows"] if row["problem"]]
    return shown + [f"Without {name}: {reason}." for name, reason in part["unusable"].items()]


def _by_runtime(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    order = list(dict.fromkeys(row["runtime"] for row in rows))
    return sorted(rows, key=lambda row: order.index(row["runtime"]))


def _cells(row: Mapping[str, Any]) -> list[str | None]:
    memory = None if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:,.0f}"
    error = None if row["error"] is None else f"{row['error']:.0e}"
    if row["ms"] is None:
        return [row["runtime"], row["network"], None, None, None, error, memory]
    half = f"{row['low_ms']:.3f} to {row['high_ms']:.3f}"
    faster = None if row["times_as_fast"] is None else f"{row['times_as_fast']:.2f}"
    return [row["runtime"], row["network"], f"{row['ms']:.3f}", half, faster, error, memory]


def _on_paper(networks: Sequence[Mapping[str, Any]]) -> str:
    has_accuracy = "accuracy" in networks[0]
    columns = ["network", "input", "parameters", "M MACs", "MB on disk", *(["top-1", "images"] if has_accuracy else [])]
    rows = []
    for row in networks:
        macs = None if row["macs"] is None else f"{row['macs'] / 1e6:,.2f}"
        shapes = ", ".join("×".join(map(str, shape)) for shape in row["input_shapes"])
        cells = [row["name"], shapes, row["params"], macs, f"{row['file_bytes'] / 1e6:,.3f}"]
        if has_accuracy:
            cells += [f"{row['accuracy']['top1']:.2%}", row["accuracy"]["images"]]
        rows.append(cells)
    return table(columns, rows)


def _method(data: Mapping[str, Any]) -> list[str]:
    rounds = data["measured"][0]["rounds"]
    said = [
        "Each number of threads has a process of its own. Every output was compared with eager torch's before anything "
        "was timed; the error is the largest difference as a share of the largest number. All networks took turns in "
        f"all runtimes, {rounds} rounds, every other one backwards; the first call of a turn was not clocked. Times "
        "are medians, the middle half lies between the quartiles. On one thread the processor time of the process "
        "counts, on several the clock.",
        "Peak memory is what the network adds, while it runs, to the resident memory of a process that has torch "
        "loaded: weights in the runtime's form, what stands between layers, and the runtime itself.",
    ]
    return said + ([f"Top-1 was measured on {data['data']} in float32 torch."] if data["data"] else [])
