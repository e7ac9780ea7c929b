"""What a network for images is judged by: accuracy, each class, what is taken for what; as data, text and a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from separable import report
from separable.recipes import result_page

TITLE = "Images told apart"
_SHOWN = 24  # mistakes with their picture
_CLASSES = 40  # of the largest matrix that is drawn


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


def text(part: dict[str, Any]) -> str:
    """The classification report of a part as the table people know."""
    top5 = f", top-5 {part['top5']:.4f}" if "top5" in part else ""
    said = f"accuracy {part['accuracy']:.4f}{top5} ({part['right']:,} of {part['images']:,} images)"
    return "\n".join([*result_page.class_lines(part["rows"]), "", said])


def write(folder: Path, results: dict[str, Any], pictures: dict[str, list[Tensor]]) -> None:
    """results.json and report.html, each whole or not at all.

    Args:
        pictures: of each part the images of its mistakes, bytes [C, H, W], in their order.
    """
    history, parts = results["history"], [name for name in ("test", "valid") if name in results]
    curves = result_page.curve(history, {"loss": "loss"}, "nats", "Training loss")
    curves += result_page.curve(history, {"valid": "valid_accuracy"}, "accuracy", "Images held out")
    facts = headline(parts[0], results[parts[0]]) if parts else []
    facts += [
        (f"{results['params']:,}", "parameters"),
        (f"{results['macs'] / 1e6:.2f} M", "multiply-adds an image"),
    ]
    sections = [section(name, results[name], pictures[name]) for name in parts]
    left = [f"{file} {reason}" for file, reason in results["skipped"]["train"]]
    result_page.write(folder, TITLE, results, sections, curves, facts, left)


def headline(name: str, part: dict[str, Any]) -> list[tuple[str, str]]:
    """(value, what it is) of one part."""
    return [
        (f"{part['accuracy']:.2%}", f"accuracy, {name}"),
        (f"{part['images_per_s']:,.0f}", "images a second"),
    ]


def section(name: str, part: dict[str, Any], pictures: Sequence[Tensor]) -> report.Section:
    """One part for a page, with the pictures of its mistakes, bytes [C, H, W]."""
    said = [f"{part['right']:,} of {part['images']:,} images are right."]
    said += [f"Left out: {file} {reason}" for file, reason in part["skipped"][:20]]
    said += [f"No image shows: {', '.join(part['empty'])}"] if part["empty"] else []
    shown = [*said, result_page.class_table(part["rows"], "Each class")]
    classes = list(part["rows"])
    if len(classes) <= _CLASSES:
        shown.append(report.plots.confusion(part["confusion"], classes, title="What is taken for what"))
    if pictures:
        images = [image[0] if len(image) == 1 else image.permute(1, 2, 0) for image in pictures]
        captions = [f"{m['true']}, guessed {m['guessed']} ({m['chance']:.0%})" for m in part["mistakes"]]
        shown.append(report.pictures(images, captions, "The surest mistakes"))
    return report.Section(name, shown)
