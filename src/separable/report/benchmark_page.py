"""The page of networks side by side, from the plain data that `separable benchmark --json` prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from separable.report.comparison_parts import comparison_parts
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
        *(Section(_title(part), comparison_parts(part, _title(part))) for part in measured),
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
