"""The tables of `who_pays` for a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from separable.conversion.who_pays.compare import ACCURACY, ERROR
from separable.conversion.who_pays.result import NAMES, Group, WhoPays

if TYPE_CHECKING:
    from rich.table import Table


def tables(found: WhoPays, most: int) -> list["Table"]:
    """A table for each part that has rows."""
    made = [_groups(found, "class", found.classes, most)] if found.classes else []
    if found.slices:
        made.append(_groups(found, "slice", found.slices, most))
    if found.changed:
        made.append(_changed(found, most))
    if found.far:
        made.append(_far(found, most))
    if found.layers:
        made.append(_layers(found, most))
    return made


def _table(title: str, columns: Sequence[str], left: int = 1) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(columns):
        table.add_column(heading, justify="left" if i < left else "right")
    return table


def _groups(found: WhoPays, kind: str, groups: list[Group], most: int) -> "Table":
    accuracy = found.measure == ACCURACY
    shown = f", the first {most} of {len(groups)}" if len(groups) > most else ""
    columns = [kind, "examples", *(["dense", "converted"] if accuracy else []), NAMES[found.measure], "95 % interval"]
    columns += ["lost, won", "p"] if accuracy else [] if found.measure == ERROR else ["changed"]
    plural = "classes" if kind == "class" else "slices"
    table = _table(f"What {plural} lose, largest loss first{shown}", columns)
    for group in [*groups[:most], found.overall]:
        row = [group.name, f"{group.examples:,}"]
        row += [f"{group.dense:.1%}", f"{group.converted:.1%}"] if accuracy else []
        row += [f"{group.loss:+.1%}" if accuracy else f"{group.loss:.2%}", interval(group.low, group.high)]
        if accuracy:
            row += [f"{group.lost}, {group.won}", "" if group.p is None else f"{group.p:.2g}"]
        elif found.measure != ERROR:
            row.append(f"{group.lost}")
        table.add_row(*row)
    return table


def _changed(found: WhoPays, most: int) -> "Table":
    shown = f", the first {most} of {len(found.changed)}" if len(found.changed) > most else ""
    labelled = found.measure == ACCURACY
    columns = ["example", *(["", "label"] if labelled else []), "dense", "converted"]
    table = _table(f"Examples whose answer changed{shown}", columns, left=len(columns))
    for one in found.changed[:most]:
        row = [one.file or f"{one.index}", *([one.kind, one.label or ""] if labelled else [])]
        row += [f"{one.dense} ({one.dense_probability:.2f})", f"{one.converted} ({one.converted_probability:.2f})"]
        table.add_row(*row)
    return table


def _far(found: WhoPays, most: int) -> "Table":
    table = _table("Examples farthest from the dense network", ["example", "relative error"])
    for one in found.far[:most]:
        table.add_row(one.file or f"{one.index}", f"{one.error:.2%}")
    return table


def _layers(found: WhoPays, most: int) -> "Table":
    shown = f", the first {most} of {len(found.layers)}" if len(found.layers) > most else ""
    title = f"Layers taken back one at a time, on {found.tried.examples:,} of {found.tried.of:,} examples{shown}"
    recovered = {ACCURACY: "accuracy recovered", ERROR: "error removed"}.get(found.measure, "agreement recovered")
    table = _table(title, ["layer", recovered, "95 % interval", "output difference removed", "most in"])
    for layer in found.layers[:most]:
        if layer.recovered is None or layer.difference is None:
            table.add_row(layer.name, "", "", "", layer.note)
        else:
            most_in = ", ".join(f"{one['kind']} {one['name']} {one['recovered']:+.1%}" for one in layer.groups)
            limits = interval(layer.low, layer.high)
            table.add_row(layer.name, f"{layer.recovered:+.2%}", limits, f"{layer.difference:.0%}", most_in)
    return table


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.1%} to {high:+.1%}"
