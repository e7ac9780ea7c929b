"""What a network that hears is judged by, as JSON, as one page, and as a table on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from separable import report
from separable.data.wav import Clip
from separable.recipes import result_page

TITLE = "Keywords in sound"
_SHOWN = 30  # mistakes on the page; results.json has all
_PLAYED = 12  # of them, those that can be heard


def write(folder: Path, results: dict[str, Any], clips: Mapping[str, Sequence[Clip]], rate: int) -> None:
    """results.json and report.html, each whole or not at all; the page plays the surest mistakes among `clips`."""
    history = results["history"]
    loss_title = "Loss (training: of varied clips, with smoothed labels)"
    curves = result_page.curve(history, {"training": "loss", "valid": "valid_loss"}, "nats a clip", loss_title)
    curves += result_page.curve(history, {"valid": "valid_accuracy"}, "accuracy", "Accuracy on the validation set")
    parts = [name for name in ("test", "valid") if name in results]
    sections = [section(name, results[name], clips[name], rate) for name in parts]
    facts = [fact for name in parts for fact in headline(name, results[name])] + [
        (f"{results['params']:,}", "parameters, batch norm folded"),
        (f"{results['macs'] / 1e6:.2f} M", "multiply-adds a clip"),
    ]
    left = [f"{file} {reason}" for file, reason in results["skipped"]]
    result_page.write(folder, TITLE, results, sections, curves, facts, left)


def headline(name: str, part: dict[str, Any]) -> list[tuple[str, str]]:
    """(value, what it is) of one part."""
    return [(f"{part['accuracy']:.2%}", f"accuracy, {name} ({part['clips']} clips)")]


def section(name: str, part: dict[str, Any], clips: Sequence[Clip], rate: int) -> report.Section:
    """One part for a page."""
    said = [f"Never seen in training, so counted wrong: {', '.join(part['unseen_labels'])}."]
    mistakes = report.table(
        ["file", "label", "heard", "probability"],
        [[m["file"], m["label"], m["heard"], round(m["probability"], 3)] for m in part["mistakes"][:_SHOWN]],
        f"{len(part['mistakes'])} mistakes" + (f", the surest {_SHOWN}" if len(part["mistakes"]) > _SHOWN else ""),
    )
    matrix = report.plots.confusion(part["confusion"]["counts"], part["confusion"]["classes"], title=f"Heard, {name}")
    tables = [matrix, result_page.class_table(part["classes"], "Classes"), mistakes]
    shown = [*(said if part["unseen_labels"] else []), *tables, *_played(part["mistakes"], clips, rate)]
    return report.Section(name, shown)


def _played(mistakes: Sequence[dict[str, Any]], clips: Sequence[Clip], rate: int) -> list[str]:
    """The surest mistakes as sounds; nothing where there are none."""
    chosen = mistakes[:_PLAYED]
    if not chosen:
        return []
    samples = {clip.name: clip.samples for clip in clips}
    captions = [f"{m['label']}, heard {m['heard']} ({m['probability']:.0%}): {m['file']}" for m in chosen]
    return [report.sounds([samples[m["file"]] for m in chosen], rate, captions, "The surest mistakes")]


def text(part: dict[str, Any]) -> str:
    """The rows of the classes and the accuracy."""
    lines = result_page.class_lines(part["classes"])
    wide = len(lines[0]) - len("  precision    recall  f1-score   support")
    lines += ["", f"{'accuracy':>{wide}}  {'':9} {'':9} {part['accuracy']:9.3f} {part['clips']:9d}"]
    return "\n".join(lines)
