"""Who pays for a conversion: sections of a page from the plain data that `WhoPays.to_json()` gives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from separable.report import plots
from separable.report.page import Markup, Section, pictures, table, write_page

_DRAWN = 40  # rows of a picture; the table below it has all
_LISTED = 50  # examples in a table
_CHANCE = 0.05
_KINDS_OF_LOSS = ("may be chance", "beyond chance")
_UNITS = {
    "accuracy": "points of accuracy lost",
    "agreement": "% of the answers changed",
    "error": "% relative error",
}
_RECOVERED = {
    "accuracy": "points of accuracy recovered",
    "agreement": "points of agreement recovered",
    "error": "points of relative error removed",
}
_KINDS = {
    "lost": "right in the dense network, wrong in the converted one",
    "won": "wrong in the dense network, right in the converted one",
    "other": "wrong in both, in another way",
}


def who_pays_page(
    data: Mapping[str, Any], file: str | Path, images: Mapping[int, Any] | None = None, title: str = "Who pays"
) -> Path:
    """Write a page of these sections alone.

    Args:
        data: `WhoPays.to_json()`.
        file: where; written beside and renamed.
        images: small pictures by the example's index, as `WhoPays.pictures()` gives them.

    Raises:
        InputError: `file` cannot be written, or jinja2 or matplotlib is not installed.
    """
    return write_page(file, title, who_pays_sections(data, images), facts=who_pays_facts(data))


def who_pays_facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(value, what it is) for the head of a page: the mean, and who pays most."""
    overall, unit = data["overall"], _UNITS[data["measure"]]
    facts = [(f"{_percent(overall['loss'])}", f"{unit}, all {overall['examples']:,} examples")]
    for kind, groups in (("class", data["classes"]), ("slice", data["slices"])):
        if groups:
            facts.append((f"{_percent(groups[0]['loss'])}", f"{unit}, {kind} {groups[0]['name']}"))
    return facts


def who_pays_sections(data: Mapping[str, Any], images: Mapping[int, Any] | None = None) -> list[Section]:
    """What classes and slices lose, which examples changed, which layers are responsible."""
    sections = [Section("Who pays", [_summary(data)])]
    if data["classes"]:
        sections.append(Section("What each class loses", _group_parts(data, "classes")))
    if data["slices"]:
        sections.append(Section("What each slice loses", _group_parts(data, "slices")))
    sections.append(Section("Examples that changed", _example_parts(data, images or {})))
    if data["layers"]:
        sections.append(Section("Layers responsible", _layer_parts(data)))
    return sections


def _summary(data: Mapping[str, Any]) -> str:
    overall, counts = data["overall"], data["changed_examples"]
    span = _span_text(overall)
    if data["measure"] == "accuracy":
        said = (
            f"On {overall['examples']:,} labelled examples the dense network is right on {overall['dense']:.2%}, the "
            f"converted one on {overall['converted']:.2%}: {_percent(overall['loss'])} points lost{span}. "
            f"{counts['lost']:,} answers were lost, {counts['won']:,} won, "
            f"{counts['other']:,} changed from one wrong answer to another."
        )
    elif data["measure"] == "agreement":
        said = (
            f"On {overall['examples']:,} examples without labels, the converted network gives another answer than the "
            f"dense one on {overall['loss']:.2%}{span}. Classes are the dense network's answers. Whether a changed "
            "answer is better or worse is not known."
        )
    else:
        said = (
            f"On {overall['examples']:,} examples the outputs differ from the dense network's by "
            f"{overall['loss']:.2%} on average{span}: the root mean square of the difference as a share of that of the "
            "dense network's outputs over all examples."
        )
    left = data["unlabelled"]
    return said + (f" {left:,} examples without a label were left out." if left else "")


def _group_parts(data: Mapping[str, Any], which: str) -> list[str]:
    groups, measure = data[which], data["measure"]
    one = "class" if which == "classes" else "slice"
    shown = groups[:_DRAWN]
    certain = [_certain(group) for group in shown]
    first = f" (the {_DRAWN} that lose most of {len(groups)})" if len(groups) > _DRAWN else ""
    drawn = plots.intervals(
        [group["name"] for group in shown],
        [100 * group["loss"] for group in shown],
        [_span(group) for group in shown],
        unit=_UNITS[measure],
        title=f"Loss of each {one} with its 95 % interval{first}",
        groups=[_KINDS_OF_LOSS[sure] for sure in certain] if measure == "accuracy" else None,
        kinds=_KINDS_OF_LOSS,
    )
    columns = [
        one,
        "examples",
        *(["dense", "converted"] if measure == "accuracy" else []),
        _UNITS[measure],
        "95 % interval",
    ]
    columns += ["lost", "won", "p"] if measure == "accuracy" else ["changed"] if measure == "agreement" else []
    rows = [_group_row(group, measure) for group in groups]
    overall = _group_row({**data["overall"], "name": "all examples"}, measure)
    return [drawn, _group_text(measure, one, len(groups)), table(columns, rows, "Largest loss first", overall)]


def _group_row(group: Mapping[str, Any], measure: str) -> list[Any]:
    row: list[Any] = [group["name"], group["examples"]]
    row += [f"{group['dense']:.1%}", f"{group['converted']:.1%}"] if measure == "accuracy" else []
    row += [_percent(group["loss"]), _span_text(group).removeprefix(" (").removesuffix(")")]
    if measure == "accuracy":
        row += [group["lost"], group["won"], "" if group["p"] is None else f"{group['p']:.2g}"]
    elif measure == "agreement":
        row.append(group["lost"])
    return row


def _group_text(measure: str, one: str, many: int) -> str:
    if measure == "accuracy":
        number = f"{many} {'classes' if one == 'class' else 'slices'}" if many > 1 else f"one {one}"
        return (
            "Intervals are of the paired difference (Tango 1998): what counts are examples that one network alone gets "
            f"right. p is McNemar's exact test, corrected for {number} "
            "(Holm): the worst of many groups looks bad by chance alone, so a loss is called beyond chance only where "
            f"p is below {_CHANCE:g}."
        )
    if measure == "agreement":
        return "Intervals are Wilson's, of the share of answers that changed."
    return "Intervals are Student's, of the mean error; errors of few examples can be more uneven than they allow for."


def _example_parts(data: Mapping[str, Any], images: Mapping[int, Any]) -> list[str]:
    if data["measure"] == "error":
        far = data["far"]
        parts: list[str] = [
            _pictures(far, images, "Farthest from the dense network", lambda one: f"{one['error']:.1%}")
        ]
        rows = [[one["file"] or f"{one['index']}", f"{one['error']:.2%}"] for one in far[:_LISTED]]
        return [*filter(None, parts), table(["example", "relative error"], rows, "Largest relative error first")]
    if not data["changed"]:
        return ["No answer changed."]
    labelled, parts = data["measure"] == "accuracy", []
    for kind, meaning in _KINDS.items():
        ones = [one for one in data["changed"] if one["kind"] == kind]
        if not ones:
            continue
        count = data["changed_examples"][kind]
        heading = f"{kind.capitalize()}: {meaning}" if labelled else "Changed"
        parts.append(f"{heading}; {count:,} {'example' if count == 1 else 'examples'}, the surest first.")
        parts.append(_pictures(ones, images, heading, _caption))
        columns = ["example", *(["label"] if labelled else []), "dense", "probability", "converted", "probability"]
        rows = [_example_row(one, labelled) for one in ones[:_LISTED]]
        more = f", the first {len(rows)} of {count:,}" if count > len(rows) else ""
        parts.append(table(columns, rows, f"{heading}{more}"))
    return [*filter(None, parts)]


def _example_row(one: Mapping[str, Any], labelled: bool) -> list[Any]:
    row = [one["file"] or f"{one['index']}", *([one["label"]] if labelled else [])]
    return [
        *row, one["dense"], f"{one['dense_probability']:.3f}", one["converted"], f"{one['converted_probability']:.3f}"
    ]  # fmt: skip


def _caption(one: Mapping[str, Any]) -> str:
    return f"{one['dense']} {one['dense_probability']:.2f} → {one['converted']} {one['converted_probability']:.2f}" + (
        f", is {one['label']}" if one["label"] not in (None, one["dense"], one["converted"]) else ""
    )


def _pictures(ones: Sequence[Mapping[str, Any]], images: Mapping[int, Any], title: str, caption) -> Markup | str:
    shown = [one for one in ones if one["index"] in images]
    return pictures([images[one["index"]] for one in shown], [caption(one) for one in shown], title) if shown else ""


def _layer_parts(data: Mapping[str, Any]) -> list[str]:
    measure, tried = data["measure"], data["tried"]
    able = [layer for layer in data["layers"] if layer["recovered"] is not None]
    parts: list[str] = []
    if able:
        shown = able[:_DRAWN]
        first = f" (the {_DRAWN} that recover most of {len(able)})" if len(able) > _DRAWN else ""
        drawn = plots.intervals(
            [layer["name"] or "the network" for layer in shown],
            [100 * layer["recovered"] for layer in shown],
            [_span(layer) for layer in shown],
            unit=_RECOVERED[measure],
            title=f"What it recovers to take one layer back, with its 95 % interval{first}",
            bars=True,
        )
        parts.append(drawn)
    counts = measure != "error"
    columns = ["layer", _RECOVERED[measure], "95 % interval", *(["regained", "broken"] if counts else []),
               "output difference removed", "most in"]  # fmt: skip
    rows = [_layer_row(layer, counts) for layer in data["layers"]]
    return [*parts, _layer_text(tried), table(columns, rows, "The layer that recovers most first")]


def _layer_row(layer: Mapping[str, Any], counts: bool) -> list[Any]:
    name = layer["name"] or "the network"
    if layer["recovered"] is None:
        return [name, None, "", *([None, None] if counts else []), None, layer["note"]]
    row = [name, _percent(layer["recovered"]), _span_text(layer).removeprefix(" (").removesuffix(")")]
    row += [f"{layer['regained']:.0f}", f"{layer['broken']:.0f}"] if counts else []
    parts = [f"{part['kind']} {part['name']} ({100 * part['recovered']:+.1f})" for part in layer["groups"]]
    return [*row, f"{layer['difference']:.0%}", ", ".join(parts)]


def _layer_text(tried: Mapping[str, Any]) -> str:
    said = (
        "Each layer of the converted network was taken back from the dense one, alone, with the rest as it is. What "
        "layers recover does not add up: errors of several layers can hide or amplify each other, and after training "
        "(distillation) the others have adapted to a layer, so that taking it back alone can do harm."
    )
    if tried["examples"] == tried["of"]:
        return f"{said} All {tried['of']:,} examples were used."
    said += f" Estimated from {tried['examples']:,} of {tried['of']:,} examples"
    if tried["of_changed"]:
        said += (
            f": {tried['changed']:,} of the {tried['of_changed']:,} whose answer changed and "
            f"{tried['examples'] - tried['changed']:,} of the others, drawn at random, each counted by its share of "
            "the data. Changed examples alone would flatter every layer: whatever moves the outputs turns some of them "
            "back"
        )
    return said + ("." if tried["complete"] else "; time ran out before more were tried.")


def _certain(group: Mapping[str, Any]) -> bool:
    return group["p"] is not None and group["p"] < _CHANCE and group["loss"] > 0


def _percent(share: float) -> str:
    return f"{100 * share:.2f}" if abs(share) < 0.1 else f"{100 * share:.1f}"


def _span(one: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if one["low"] is None else (100 * one["low"], 100 * one["high"])


def _span_text(one: Mapping[str, Any]) -> str:
    return "" if one["low"] is None else f" ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
