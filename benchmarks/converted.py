"""Write the tables of README.md and docs/conversion.md, what conversions reached, from the rows in results/.

    python benchmarks/converted.py

It measures nothing. tests/test_docs.py holds both pages equal to what this makes.
"""

import csv
import statistics
from pathlib import Path

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE.parent / "docs" / "conversion.md")
BEGIN, END = "<!-- written by benchmarks/converted.py: {} -->", "<!-- end of what it wrote -->"


def rows_of(name: str, **wanted: str) -> list[dict[str, str]]:
    with (HERE / "results" / f"{name}.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


def table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *lines))


def several(values: list[float], digits: int) -> str:
    """Their mean, and the range of several."""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def resnet20() -> str:
    """Of each budget what a user asks first: how right, how fast."""
    lines = []
    for budget, seeds in _by_budget(rows_of("convert", network="resnet20")).items():
        row, tops = seeds[0], [float(row["score"]) for row in seeds]
        share = float(row["macs_share"])
        times = [f"{1 / float(row[f'time_share_{threads}t']):.2f}" for threads in (1, 2)]
        lines.append((_told(budget), several(tops, 2), f"{share:.1%}", *times))
    return table(("", "top-1 %", "multiply-adds", "times as fast, one thread", "two threads"), lines)


def everything() -> str:
    """Every row: agreement or accuracy, time beside the fastest dense network, what the conversion took."""
    times = ("time, one thread", "time, two threads", "over dense in ONNX Runtime")
    head = ("network", "budget", "measured", "", "multiply-adds", *times, "seconds", "GB", "processor")
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows_of("convert")):
        for budget, seeds in _by_budget(rows_of("convert", network=network)).items():
            row, scores = seeds[0], [float(row["score"]) for row in seeds]
            digits = 2 if max(scores) > 1 else 4
            times = [f"{float(row[f'time_share_{n}t']):.2f}, {row[f'runtime_{n}t']}" for n in (1, 2)]
            elsewhere = ", ".join(f"{float(row[f'share_of_onnxruntime_{n}t']):.2f}" for n in (1, 2))
            spent = ("", "") if budget == "dense" else (row["convert_s"], row["peak_gb"])
            share = f"{float(row['macs_share']):.3f}"
            lines.append(
                (
                    network, _told(budget), row["measure"], several(scores, digits), share, *times, elsewhere, *spent,
                    row["processor"].replace("(R)", ""),
                )
            )  # fmt: skip
    return table(head, lines)


def distilled() -> str:
    """ResNet-20 before and after distillation, by budget."""
    runs: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows_of("distill"):
        runs.setdefault((row["network"], row["epochs"]), []).append(row)
    lines = []
    for (network, epochs), seeds in sorted(runs.items(), key=lambda run: (run[0][0].split(",")[2], -_share(run[1]))):
        budget, batch = network.split(", ")[1:]
        before, after = ([float(row[name]) for row in seeds] for name in ("top1_percent_before", "top1_percent"))
        told = f"`{budget}`" + ("" if budget.startswith("macs") else f", {batch}")
        lines.append((told, f"{_share(seeds):.1%}", several(before, 2), several(after, 2), epochs, str(len(seeds))))
    return table(("", "multiply-adds", "top-1 % before", "after", "epochs", "seeds"), lines)


def peers() -> str:
    """`convert` beside what else makes a network smaller: accuracy and time of each at every budget."""
    lines = [
        (
            row["network"], _told(row["budget"]), row["method"], row["epochs"], row["score"], row["macs_share"],
            f"{row['time_share']}, {row['runtime']}",
        )
        for row in rows_of("peers")
        if row["method"] != "dense"
    ]  # fmt: skip
    return table(("network", "budget", "method", "epochs", "score", "multiply-adds", "time over dense"), lines)


def _share(seeds: list[dict[str, str]]) -> float:
    return statistics.fmean(float(row["macs_share"]) for row in seeds)


def _by_budget(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """The dense network first, then budgets of multiply-adds; seeds in order, of which the first one was timed."""
    order = sorted(rows, key=lambda row: (row["budget"] != "dense", "macs" not in row["budget"], -_amount(row)))
    return {
        budget: sorted((row for row in rows if row["budget"] == budget), key=lambda row: int(row["seed"]))
        for budget in dict.fromkeys(row["budget"] for row in order)
    }


def _amount(row: dict[str, str]) -> float:
    return float(row["budget"].partition("=")[2] or 1)


def _told(budget: str) -> str:
    return budget if budget == "dense" else f"`{budget}`"


TABLES = {"resnet20": resnet20, "everything": everything, "distilled": distilled, "peers": peers}


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        begin = BEGIN.format(name)
        if begin in text:
            at = text.index(begin) + len(begin)
            text = f"{text[:at]}\n\n{make()}\n\n{text[text.index(END, at) :]}"
    return text


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text()))
