"""What a network that hears is judged by, as JSON, as one page, and as a table on the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from separable import atomic, report
from separable.data.wav import Clip

_SHOWN = 30  # mistakes on the page; results.json has all
_PLAYED = 12  # of them, those that can be heard


def write(folder: Path, results: dict[str, Any], clips: Mapping[str, Sequence[Clip]], rate: int) -> None:
    """results.json and report.html, each whole or not at all; the page plays the surest mistakes among `clips`."""
    with atomic.write_beside(folder / "results.json") as beside:
        beside.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    history = results["history"]
    losses = {"training": "loss", "valid": "valid_loss"}
    epochs = [row["epoch"] for row in history]
    training = [
        report.plots.curves(
            {name: (epochs, [row[key] for row in history]) for name, key in losses.items()},
            x="epoch", y="nats a clip", title="Loss (training: of varied clips, with smoothed labels)",
        ),
        report.plots.curves(
            {"valid": (epochs, [row["valid_accuracy"] for row in history])}, x="epoch", y="accuracy",
            title="Accuracy on the validation set",
        ),
        report.table(["setting", "value"], [[k, v] for k, v in results["settings"].items()], "Settings"),
    ]  # fmt: skip
    parts = [name for name in ("valid", "test") if name in results]
    sections = [report.Section(name, _parts(results, name, clips[name], rate)) for name in reversed(parts)]
    sections.append(report.Section("Training", training))
    facts = [
        *((f"{results[name]['accuracy']:.2%}", f"accuracy, {name} ({results[name]['clips']} clips)") for name in parts),
        (f"{results['params']:,}", "parameters, batch norm folded"),
        (f"{results['macs'] / 1e6:.2f} M", "multiply-adds a clip"),
        (f"{results['minutes']:.1f} min", f"training ({results['processor_minutes']:.1f} of processor time)"),
    ]
    report.write_page(folder / "report.html", "Keywords in sound", sections, facts=facts)


def _parts(results: dict[str, Any], name: str, clips: Sequence[Clip], rate: int) -> list[str]:
    part = results[name]
    said = (
        [f"Never seen in training, so counted wrong: {', '.join(part['unseen_labels'])}."]
        if part["unseen_labels"]
        else []
    )
    said += [f"Left out: {file} {reason}." for file, reason in results["skipped"][:20]]
    columns = ["", "precision", "recall", "f1-score", "support"]
    rows = [[c, *(round(v[k], 3) for k in columns[1:4]), int(v["support"])] for c, v in part["classes"].items()]
    mistakes = report.table(
        ["file", "label", "heard", "probability"],
        [[m["file"], m["label"], m["heard"], round(m["probability"], 3)] for m in part["mistakes"][:_SHOWN]],
        f"{len(part['mistakes'])} mistakes" + (f", the surest {_SHOWN}" if len(part["mistakes"]) > _SHOWN else ""),
    )
    matrix = report.plots.confusion(part["confusion"]["counts"], part["confusion"]["classes"], title=f"Heard, {name}")
    return [*said, matrix, report.table(columns, rows, "Classes"), mistakes, *_played(part["mistakes"], clips, rate)]


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
    wide = max(8, *(len(name) for name in part["classes"])) + 1
    lines = [" " * wide + "  precision    recall  f1-score   support", ""]
    lines += [
        f"{name:>{wide}}  {row['precision']:9.3f} {row['recall']:9.3f} {row['f1-score']:9.3f} {int(row['support']):9d}"
        for name, row in part["classes"].items()
    ]
    lines += ["", f"{'accuracy':>{wide}}  {'':9} {'':9} {part['accuracy']:9.3f} {part['clips']:9d}"]
    return "\n".join(lines)
