"""What a network for images is judged by: accuracy, each class, what is taken for what; as data, text and a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from separable import atomic, report

_SHOWN = 24  # mistakes with their picture


def measure(labels: Tensor, chances: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy, top-5 where there are more than five classes, rows of each class, confusion, and the surest mistakes.

    Args:
        labels: int64 [N].
        chances: [N, classes], a distribution over classes for each image.
    """
    count, (sure, guess) = len(classes), chances.max(1)
    counts = torch.bincount(labels * count + guess, minlength=count * count).view(count, count)  # [true, guessed]
    right, shown, guessed = counts.diagonal().double(), counts.sum(1).double(), counts.sum(0).double()
    columns = {
        "precision": right / guessed.clamp_min(1),
        "recall": right / shown.clamp_min(1),
        "f1-score": 2 * right / (guessed + shown).clamp_min(1),
        "support": shown,
    }
    wrong = (guess != labels).nonzero()[:, 0]
    surest = wrong[sure[wrong].argsort(descending=True, stable=True)][:_SHOWN].tolist()
    measured: dict[str, Any] = {
        "images": len(labels),
        "right": int(right.sum()),
        "accuracy": int(right.sum()) / len(labels),
        "rows": {name: {c: float(v[i]) for c, v in columns.items()} for i, name in enumerate(classes)},
        "confusion": counts.tolist(),
        "mistakes": [_mistake(i, classes[int(labels[i])], classes[int(guess[i])], float(sure[i])) for i in surest],
    }
    if count > 5:
        measured["top5"] = float((chances.topk(5, 1).indices == labels[:, None]).any(1).double().mean())
    return measured


def _mistake(image: int, true: str, guessed: str, chance: float) -> dict[str, Any]:
    return {"image": image, "true": true, "guessed": guessed, "chance": round(chance, 4)}


def text(results: dict[str, Any]) -> str:
    """The classification report of each part as the table people know, and what the network costs."""
    lines = []
    for part in ("valid", "test"):
        if part in results:
            lines += [f"\n{part}: {results[part]['accuracy']:.4f} of {results[part]['images']:,} images", ""]
            lines += _rows(results[part]["rows"])
    cost = f"{results['params']:,} parameters, {results['macs'] / 1e6:.2f} M multiply-adds"
    time = f"{results['minutes']:.1f} minutes of training, {results['processor_minutes']:.1f} of processor time"
    return "\n".join([*lines, "", f"{cost}; {time}", ""])


def _rows(rows: dict[str, dict[str, float]]) -> list[str]:
    wide = max(len(name) for name in rows) + 1
    head = " " * wide + "  precision    recall  f1-score   support"
    return [head, "", *(
        f"{name:>{wide}}  {row['precision']:9.3f} {row['recall']:9.3f} {row['f1-score']:9.3f} {int(row['support']):9d}"
        for name, row in rows.items()
    )]  # fmt: skip


def write(folder: Path, results: dict[str, Any], pictures: dict[str, list[Tensor]]) -> None:
    """results.json and report.html, each whole or not at all.

    Args:
        pictures: of each part the images of its mistakes, bytes [C, H, W], in their order.
    """
    with atomic.write_beside(folder / "results.json") as beside:
        beside.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    sections = [report.Section("Training", [*_curves(results["history"]), _settings(results["settings"])])]
    sections += [_section(part, results[part], pictures[part]) for part in ("valid", "test") if part in results]
    part = next((part for part in ("test", "valid") if part in results), None)
    facts = [(f"{results[part]['accuracy']:.2%}", f"accuracy, {part}")] if part else []
    facts += [
        (f"{results['params']:,}", "parameters"),
        (f"{results['macs'] / 1e6:.2f} M", "multiply-adds an image"),
        (f"{results['minutes']:.1f} min", f"training ({results['processor_minutes']:.1f} of processor time)"),
    ]
    facts += [(f"{results[part]['images_per_s']:,.0f}", "images a second")] if part else []
    report.write_page(folder / "report.html", "Images told apart", sections, facts=facts)


def _curves(history: Sequence[dict[str, float]]) -> list[str]:
    curves: list[str] = []
    for key, name, title in (("loss", "nats", "Training loss"), ("valid_accuracy", "accuracy", "Images held out")):
        points = [(row["epoch"], row[key]) for row in history if key in row]
        if points:
            across, up = zip(*points, strict=True)
            curves.append(report.plots.curves({key: (across, up)}, x="epoch", y=name, title=title))
    return curves


def _settings(settings: dict[str, str]) -> str:
    return report.table(["setting", "value"], [[k, v] for k, v in settings.items()], "Settings")


def _section(name: str, part: dict[str, Any], pictures: Sequence[Tensor]) -> report.Section:
    columns = ["", "precision", "recall", "f1-score", "support"]
    rows = [[k, *(round(v[c], 3) for c in columns[1:4]), int(v["support"])] for k, v in part["rows"].items()]
    said = [f"{part['right']:,} of {part['images']:,} images are right."]
    said += [f"Left out: {file} {reason}" for file, reason in part["skipped"][:20]]
    said += [f"No image shows: {', '.join(part['empty'])}"] if part["empty"] else []
    shown = [*said, report.table(columns, rows, "Each class")]
    classes = list(part["rows"])
    if len(classes) <= 40:
        shown.append(report.plots.confusion(part["confusion"], classes, title="What is taken for what"))
    if pictures:
        images = [image[0] if len(image) == 1 else image.permute(1, 2, 0) for image in pictures]
        captions = [f"{m['true']}, guessed {m['guessed']} ({m['chance']:.0%})" for m in part["mistakes"]]
        shown.append(report.pictures(images, captions, "The surest mistakes"))
    return report.Section(name, shown)
