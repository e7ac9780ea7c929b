"""The plots of our pages, drawn by matplotlib: data in, markup of one inline SVG out.

Colours are stand-ins that `page.figure` replaces by the page's own, so that one figure serves light, dark and print.
Series differ in mark as well as in colour.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from separable.errors import InputError
from separable.report.page import Markup, figure, needs

INK, QUIET, GRID, SOFT, PAPER = "#010101", "#010102", "#010103", "#010104", "#010105"
SERIES = ("#010111", "#010112", "#010113", "#010114", "#010115", "#010116", "#010117")
MARKS = "osD^vPX"
THEME = {
    **{INK: "var(--ink)", QUIET: "var(--quiet)", GRID: "var(--grid)", SOFT: "var(--soft)", PAPER: "var(--paper)"},
    **{colour: f"var(--s{i})" for i, colour in enumerate(SERIES, 1)},
}
_WIDTH = 10.0  # inches; the page scales it
_LONGEST_NAME = 24  # characters of a class beside its row


def roofline(
    points: Sequence[Mapping[str, Any]], peak_gflops: float, bandwidth_gb_s: float, cache_gb_s: float | None = None
) -> Markup:
    """Attained rate against intensity under the roof of this machine, both axes logarithmic.

    Args:
        points: {"name", "group", "intensity" (FLOPs a byte), "gflops" (attained)} for each layer.
        peak_gflops: the flat part of the roof. bandwidth_gb_s: its slope, from memory.
        cache_gb_s: a second slope for what stays in the caches.
    """
    points = [p for p in points if p["intensity"] > 0 and p["gflops"] > 0]
    _check_some("points", points)
    fig, axes = _figure(_WIDTH, 5.4)
    low = min(min(p["intensity"] for p in points) / 2, 0.5)
    high = max(max(p["intensity"] for p in points) * 2, 4 * peak_gflops / bandwidth_gb_s)
    for rate, style, text in ((bandwidth_gb_s, "-", "memory"), (cache_gb_s, "--", "caches")):
        if rate:
            ridge = max(peak_gflops / rate, low)
            axes.plot([low, ridge, high], [low * rate, peak_gflops, peak_gflops], style, color=INK, lw=1.3, zorder=2,
                      label=f"roof of {text}, {rate:.0f} GB/s")  # fmt: skip
    axes.annotate(
        f"arithmetic: {peak_gflops:.0f} GFLOP/s", (high, peak_gflops), xytext=(0, 5), textcoords="offset points",
        ha="right", color=QUIET,
    )  # fmt: skip
    tips = {}
    for g, group in enumerate(dict.fromkeys(p["group"] for p in points)):
        colour, mark = SERIES[g % len(SERIES)], MARKS[g % len(MARKS)]
        for i, p in enumerate(q for q in points if q["group"] == group):
            gid = f"point-{g}-{i}"
            label = group if i == 0 else None
            axes.plot(
                p["intensity"],
                p["gflops"],
                mark,
                color=colour,
                ms=7,
                mec=PAPER,
                mew=0.8,
                gid=gid,
                label=label,
                zorder=3,
            )
            tips[gid] = f"{p['name']} ({group}): {p['gflops']:.1f} GFLOP/s at {p['intensity']:.1f} FLOPs a byte"
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="intensity, FLOPs a byte", ylabel="attained, GFLOP/s")
    rates = [p["gflops"] for p in points]
    axes.set_ylim(min(min(rates) / 2, low * bandwidth_gb_s), max(*rates, peak_gflops) * 2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")
    axes.legend(frameon=False, labelcolor=INK, loc="lower right", ncols=2)
    best = max(points, key=lambda p: p["gflops"])
    said = (
        f"{len(points)} layers under a roof of {peak_gflops:.0f} GFLOP/s and {bandwidth_gb_s:.0f} GB/s. "
        f"The fastest is {best['name']} with {best['gflops']:.0f} GFLOP/s."
    )
    return figure(fig, "Each layer against the roof of this machine, both axes logarithmic", said, tips)


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    unit: str,
    title: str,
    marks: Sequence[float] | None = None,
    mark_name: str = "",
    groups: Sequence[str] | None = None,
    spans: Sequence[tuple[float, float]] | None = None,
) -> Markup:
    """Horizontal bars, one a label, top down; `marks` puts a second value of each as a stroke across its bar.

    `spans` draws a line from a lower to an upper value of each along its bar.
    """
    _check_some("values", values)
    groups = groups or [""] * len(labels)
    beside = [groups, values if marks is None else marks, values if spans is None else spans]
    if any(len(given) != len(labels) for given in (values, *beside)):
        rule = f"must be as many as the labels, {len(labels)}, as must marks, groups and spans"
        raise InputError("values", len(values), rule)
    fig, axes = _figure(_WIDTH, 0.26 * len(labels) + 1.3)
    names, tips = sorted(set(groups)), {}  # the same colours on every page
    for i, (label, value, group) in enumerate(zip(labels, values, groups, strict=True)):
        gid, first = f"bar-{i}", groups.index(group) == i
        axes.barh(
            i, value, 0.72, color=SERIES[names.index(group) % len(SERIES)], gid=gid, label=group if first else None
        )
        end = value
        if marks is not None and value <= marks[i] < value + 0.1 * max(*values, *marks):
            end = marks[i]  # the stroke would cover the number
        if spans is not None:
            axes.plot(spans[i], (i, i), color=INK, lw=1.6, solid_capstyle="butt", zorder=4)
            end = max(end, spans[i][1])
        axes.annotate(f"{value:.3g}", (end, i), xytext=(5, 0), textcoords="offset points", va="center", color=QUIET)
        tips[gid] = f"{label}: {value:.4g} {unit}"
    if marks is not None:
        axes.plot(marks, range(len(labels)), "|", color=INK, ms=13, mew=2, ls="", label=mark_name, zorder=4)
    axes.set_yticks(range(len(labels)), labels)
    furthest = max(*values, *(marks or [0]), *(high for _, high in spans or []), 1e-12)
    axes.set(xlabel=unit, ylim=(len(labels) - 0.4, -0.6), xlim=(0, furthest * 1.08))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    if len(names) > 1 or mark_name:
        _legend(axes)
    longest = max(range(len(values)), key=lambda i: values[i])
    said = f"{len(values)} bars; the longest is {labels[longest]} with {values[longest]:.3g} {unit}."
    return figure(fig, title, said, tips)


def intervals(
    labels: Sequence[str],
    values: Sequence[float],
    spans: Sequence[tuple[float, float] | None],
    *,
    unit: str,
    title: str,
    bars: bool = False,
    groups: Sequence[str] | None = None,
    kinds: Sequence[str] = (),
) -> Markup:
    """A point for each label with the interval that it lies in, top down, against zero; `bars` fills from zero to it.

    Args:
        spans: (low, high) around each value; None where nothing is known.
        groups: what each label belongs to, told by colour and mark.
        kinds: all groups there can be, so that each has its colour though others are missing.
    """
    _check_some("values", values)
    groups = groups or [""] * len(labels)
    if not len(labels) == len(values) == len(spans) == len(groups):
        raise InputError("values", len(values), f"must be as many as the labels, {len(labels)}, the spans and groups")
    fig, axes = _figure(_WIDTH, 0.28 * len(labels) + 1.3)
    axes.axvline(0, color=QUIET, lw=1.2, zorder=1)
    names, tips = list(kinds) if any(groups) and kinds else sorted(set(groups)), {}
    for i, (label, value, span, group) in enumerate(zip(labels, values, spans, groups, strict=True)):
        gid, kind = f"interval-{i}", names.index(group)
        colour, first = SERIES[kind % len(SERIES)], groups.index(group) == i
        if bars:
            axes.barh(i, value, 0.62, color=colour, alpha=0.35, zorder=2)
        if span is not None:
            axes.plot(span, (i, i), color=colour, lw=2, solid_capstyle="butt", zorder=3)
        mark = MARKS[kind % len(MARKS)]
        axes.plot(
            value, i, mark, color=colour, ms=7, mec=PAPER, mew=0.8, gid=gid, zorder=4, label=group if first else None
        )
        right = max(value, span[1] if span else value, 0.0)  # beside what is drawn, never across it
        axes.annotate(f"{value:.3g}", (right, i), xytext=(7, 0), textcoords="offset points", va="center", color=QUIET)
        tips[gid] = f"{label}: {value:.4g}" + (f" ({span[0]:.4g} to {span[1]:.4g})" if span else "") + f" {unit}"
    ends = [0.0, *values, *(end for span in spans if span for end in span)]
    room = max(max(ends) - min(ends), 1e-12)
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.set(xlabel=unit, ylim=(len(labels) - 0.4, -0.6), xlim=(min(ends) - 0.02 * room, max(ends) + 0.09 * room))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    if any(groups):
        _legend(axes)
    top = max(range(len(values)), key=lambda i: values[i])
    said = f"{len(values)} values with their intervals; the largest is {labels[top]} with {values[top]:.3g} {unit}."
    return figure(fig, title, said, tips)


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, title: str) -> Markup:
    """Lines of (x values, y values), one a name."""
    _check_some("series", series)
    fig, axes = _figure(_WIDTH, 4.2)
    for i, (name, (across, up)) in enumerate(series.items()):
        if len(across) != len(up) or not len(up):
            raise InputError("series", name, "must have as many x as y values, and at least one")
        few = len(up) <= 40
        axes.plot(
            across, up, color=SERIES[i % len(SERIES)], marker=MARKS[i % len(MARKS)] if few else None, ms=5, lw=1.8,
            label=name, ls=("-", "--", "-.", ":")[i // len(SERIES) % 4],
        )  # fmt: skip
    axes.set(xlabel=x, ylabel=y)
    if all(isinstance(value, int) for across, _ in series.values() for value in across):
        axes.xaxis.set_major_locator(needs("matplotlib.ticker").MaxNLocator(integer=True))
    _legend(axes)
    ends = "; ".join(f"{name} ends at {up[-1]:.4g}" for name, (_, up) in series.items())
    return figure(fig, title, f"{y} over {x}: {ends}.")


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], *, title: str = "Confusion matrix") -> Markup:
    """Counts of (true row, predicted column), shaded by their share of the row."""
    size = len(classes)
    if len(matrix) != size or any(len(row) != size for row in matrix):
        raise InputError("matrix", f"{len(matrix)} rows", f"must be {size} x {size}, one row and column a class")
    side = min(0.5 * size + 2.0 + 0.09 * min(max(map(len, classes), default=0), _LONGEST_NAME), _WIDTH)
    fig, axes = _figure(side, side)
    axes.grid(visible=False)
    for i, row in enumerate(matrix):
        total = max(sum(row), 1)
        for j, n in enumerate(row):
            share, colour = n / total, SERIES[0] if i == j else SERIES[1]
            axes.add_patch(_rectangle((j - 0.5, i - 0.5), colour, share))
            if n and size <= 20:
                axes.text(j, i, f"{n}", ha="center", va="center", fontsize=9, color=PAPER if share > 0.6 else INK)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="predicted", ylabel="true", aspect="equal")
    names = [_short(name) for name in classes]
    longest = max(map(len, names), default=0)
    axes.set_xticks(range(size), names, rotation=0 if longest <= 3 else 45 if longest <= 8 else 90, ha="center")
    axes.set_yticks(range(size), names)
    right, every = sum(matrix[i][i] for i in range(size)), sum(map(sum, matrix))
    return figure(fig, title, f"{right} of {every} examples of {size} classes lie on the diagonal.")


def _short(name: str) -> str:
    """A name that leaves room for what it names; its beginning and its end tell it from others."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}…{name[-8:]}"


def _rectangle(corner: tuple[float, float], colour: str, opacity: float) -> Any:
    return needs("matplotlib.patches").Rectangle(corner, 1, 1, facecolor=colour, alpha=opacity, edgecolor="none")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure outside matplotlib's global state, and its only axes in our style."""
    fig = needs("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots()
    axes.set_axisbelow(True)
    axes.grid(color=GRID, lw=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    axes.tick_params(which="both", colors=QUIET, labelcolor=QUIET)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return fig, axes


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, labelcolor=INK, loc="best")


def _check_some(argument: str, values: Any) -> None:
    if not len(values):
        raise InputError(argument, values, "must hold something to draw")
