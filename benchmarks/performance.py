"""Write the tables of docs/performance.md from the rows in results/; nothing is measured here.

    python benchmarks/performance.py

A part a processor, a table a claim: a row a shape or network, a column a way, the median in milliseconds; last, how
many times as long the best peer takes. tests/test_docs.py holds the page equal to what this makes.
"""

import csv
import math
import statistics
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN = "<!-- written by benchmarks/performance.py -->"
GROUPS = {
    "grid": "Depthwise, forward and backward, channels-last",
    "default": "The same in torch's default layout",
    "forward": "Depthwise, forward alone",
    "other": "One and three dimensions, depth multipliers",
    "bfloat16": "bfloat16, forward and backward",
}
Rows = list[dict[str, str]]


def rows(name: str, **wanted: str) -> Rows:
    with (HERE / "results" / f"{name}.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


def processors() -> list[str]:
    """That the tables are of, the latest measured first."""
    found = [row for name in ("kernels", "fused", "networks", "train") for row in rows(name)]
    latest = {row["processor"]: row["date"] for row in sorted(found, key=lambda row: row["date"])}
    return sorted(latest, key=lambda name: latest[name], reverse=True)


def table(title: str, found: Rows, name: str, way: str, ms: str, ours: str, peers: set[str]) -> str:
    """A line for each value of the column `name`, a column for each of `way`; the best of `peers` over `ours`."""
    ways = list(dict.fromkeys(row[way] for row in found))
    if ours not in ways or not peers & {*ways}:
        return ""
    lines = [f"| | {' | '.join(f'{w}, ms' for w in ways)} | best peer / {ours} |", "|---" * (len(ways) + 2) + "|"]
    ratios = []
    for key in dict.fromkeys(row[name] for row in found):
        times = {row[way]: float(row[ms]) for row in found if row[name] == key}
        ratios.append(min(times[peer] for peer in peers & times.keys()) / times[ours])
        shown = (f"{times[w]:.4g}" if w in times else "" for w in ways)
        lines.append(f"| {key} | {' | '.join(shown)} | {ratios[-1]:.2f} |")
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    lines.append(f"| geometric mean |{' |' * len(ways)} {mean:.2f} |")
    return f"### {title}\n\n" + "\n".join(lines) + "\n"


def threads_of(found: Rows) -> list[tuple[str, Rows]]:
    counts = sorted({row["threads"] for row in found})
    return [(f"{n} thread{'s' * (n != '1')}", [row for row in found if row["threads"] == n]) for n in counts]


def tables(processor: str) -> str:
    """All tables of one processor that have rows."""
    made = []
    eager = {"eager", "eager channels-last", "eager default", "compile"}
    for group, title in GROUPS.items():
        for threads, found in threads_of(rows("kernels", group=group, processor=processor)):
            made.append(table(f"{title}, {threads}", found, "shape", "way", "ms", "auto", eager))
    float32 = {"eager", "eager channels-last", "compile with freezing", "onnxruntime", "openvino f32"}
    for kind in ("separable", "bottleneck"):
        found = rows("fused", kind=kind, processor=processor)
        title = f"Fused {kind}, batch 1, 1 thread"
        made += [table(title, found, "shape", "peer", "median_ms", "accelerate", float32)] if found else []
    networks = rows("networks", processor=processor)
    by_kind = {"Separable": [r for r in networks if r["kind"] != "dense"]}  # rows of before know no kind
    by_kind["Dense and grouped"] = [r for r in networks if r["kind"] == "dense"]
    for kind, (threads, found) in ((kind, part) for kind, of_kind in by_kind.items() for part in threads_of(of_kind)):
        title = f"{kind} networks, {threads}"
        made.append(table(f"{title}, float32", found, "network", "peer", "median_ms", "accelerate", float32))
        half = [row for row in found if row["peer"] in ("accelerate bf16", "openvino default", "eager")]
        bfloat16 = {"openvino default"}
        made.append(table(f"{title}, bfloat16", half, "network", "peer", "median_ms", "accelerate bf16", bfloat16))
    for threads, found in threads_of(rows("train", processor=processor)):
        made.append(table(f"Training step, batch 128, {threads}", found, "network", "way", "ms", "native", eager))
    return "\n".join(filter(None, made))


def page(text: str) -> str:
    """The page with its tables made anew."""
    made = "\n".join(f"## {processor}\n\n{tables(processor)}" for processor in processors())
    return text[: text.index(BEGIN)] + f"{BEGIN}\n\n{made}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
