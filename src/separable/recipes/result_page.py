"""What every recipe leaves behind beside its network: results.json and one page; and tables of its classes.

A class's row is {"precision", "recall", "f1-score", "support"}, as scikit-learn and seqeval name them.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from separable import atomic, report

Rows = Mapping[str, Mapping[str, float]]
_SHARES = ("precision", "recall", "f1-score")


def write(
    folder: Path,
    title: str,
    results: Mapping[str, Any],
    sections: Sequence[report.Section],
    curves: Sequence[str],
    facts: Sequence[tuple[str, str]],
    left_out: Sequence[str] = (),
) -> None:
    """results.json and report.html, each whole or not at all.

    Args:
        results: all there is to tell; holds what `learning.train` gives.
        sections: of the page, before that of the training.
        curves: of the training, drawn.
        facts: (value, what it is) in large type; the time is added.
        left_out: what was not trained on, a line each.
    """
    with atomic.write_beside(folder / "results.json") as beside:
        beside.write_text(json.dumps(_finite(results), indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    settings = report.table(["setting", "value"], [[k, v] for k, v in results["settings"].items()], "Settings")
    left = [f"Left out of training: {line}" for line in left_out[:20]]
    training = report.Section("Training", [*left, *curves, *_search(results), settings])
    spent = (time(results["minutes"]), f"training ({time(results['processor_minutes'])} of processor time)")
    report.write_page(folder / "report.html", title, [*sections, training], facts=[*facts, spent])


def time(minutes: float) -> str:
    """As people say it: seconds below one minute."""
    return f"{60 * minutes:.0f} s" if minutes < 1 else f"{minutes:.1f} min"


def _finite(value: Any) -> Any:
    """What JSON can hold: null for a number that is none, such as the loss of a step that overflowed."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def curve(history: Sequence[Mapping[str, float]], series: Mapping[str, str], y: str, title: str) -> list[str]:
    """A drawing of series {name: key in the history's rows} over epochs; nothing where no row has a point."""
    drawn = {}
    for name, key in series.items():
        points = [(row["epoch"], row[key]) for row in history if math.isfinite(row.get(key, math.nan))]
        if points:
            across, up = zip(*points, strict=True)
            drawn[name] = (across, up)
    return [report.plots.curves(drawn, x="epoch", y=y, title=title)] if drawn else []


def _search(results: Mapping[str, Any]) -> list[str]:
    found = results.get("learning_rate_search")
    if not found:
        return []
    pairs = zip(found["rates"], found["losses"], strict=True)
    points = [(math.log10(rate), loss) for rate, loss in pairs if math.isfinite(loss)]
    across, up = zip(*points, strict=True)
    drawn = report.plots.curves(
        {"loss, smoothed": (across, up)}, x="log10 of the learning rate", y="loss", title="Search of the learning rate"
    )
    return [drawn, f"Chosen: {found['chosen']:.2g}, where the loss falls most steeply; given was {found['given']:g}."]


def told(results: Mapping[str, Any], text: Callable[[dict[str, Any]], str]) -> str:
    """The parts of a result for a terminal, each by the recipe's `text`; nothing of a process that does not report."""
    return "\n\n".join(f"{name}\n\n{text(results[name])}" for name in ("valid", "test") if name in results)


def class_table(rows: Rows, caption: str) -> str:
    """The rows as a table of a page."""
    cells = [[name, *(f"{row[c]:.3f}" for c in _SHARES), int(row["support"])] for name, row in rows.items()]
    return report.table(["", *_SHARES, "support"], cells, caption)


def class_lines(rows: Rows) -> list[str]:
    """The rows as the table people know, for a terminal."""
    wide = max(8, *(len(name) for name in rows)) + 1
    lines = [" " * wide + "  precision    recall  f1-score   support", ""]
    for name, row in rows.items():
        shares = " ".join(f"{row[column]:9.3f}" for column in _SHARES)
        lines.append(f"{name:>{wide}}  {shares} {int(row['support']):9d}")
    return lines
