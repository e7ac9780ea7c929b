"""What a tagger is judged by: strict entities (seqeval), and single tokens in the classification report's layout.

Strict means that kind, first and last word are all right. Token rows are B- and I- of each kind and O, in IOB2; micro
average equals accuracy there, since every token has one tag. Source: Tjong Kim Sang and De Meulder 2003, section 2.4.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from separable import atomic, report
from separable.data import entities
from separable.data.conll import Sentence

Tags = Sequence[Sequence[str]]


def measure(truth: Tags, guess: Tags) -> dict[str, Any]:
    """Both reports and the confusion of kinds as data; tags of any scheme."""
    from seqeval.metrics import classification_report as entity_report
    from seqeval.scheme import IOB2
    from sklearn.metrics import classification_report as token_report

    a, b = ([entities.iob2(entities.spans(row), len(row)) for row in rows] for rows in (truth, guess))
    flat_a, flat_b = ([tag for row in rows for tag in row] for rows in (a, b))
    kinds = sorted({tag[2:] for tag in {*flat_a, *flat_b} if tag != "O"})
    rows = [f"{letter}-{kind}" for kind in kinds for letter in "BI"] + ["O"]
    strict = entity_report(a, b, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    tokens = token_report(flat_a, flat_b, labels=rows, output_dict=True, zero_division=0)
    if "accuracy" in tokens:  # scikit-learn's name for it where all labels are listed
        accuracy = tokens.pop("accuracy")
        total = tokens["macro avg"]["support"]
        micro = {"precision": accuracy, "recall": accuracy, "f1-score": accuracy, "support": total}
        averages = {"micro avg": micro} | {name: tokens.pop(name) for name in ("macro avg", "weighted avg")}
        tokens |= averages
    return {"entities": _plain(strict), "tokens": _plain(tokens), "confusion": confusion(truth, guess)}


def text(report: dict[str, dict[str, float]]) -> str:
    """One report as the table people know."""
    wide = max(len(name) for name in report) + 1
    lines = [" " * wide + "  precision    recall  f1-score   support", ""]
    for name, row in report.items():
        shares = " ".join(f"{row[column]:9.3f}" for column in ("precision", "recall", "f1-score"))
        lines.append(f"{name:>{wide}}  {shares} {int(row['support']):9d}")
    return "\n".join(lines)


def examples(sentences: Sequence[Sentence], guess: Tags, count: int = 20) -> list[dict[str, str]]:
    """The first sentences with a mistake: words, what is missing, what is too much."""
    found: list[dict[str, str]] = []
    for sentence, tags in zip(sentences, guess, strict=True):
        true, said = {*entities.spans(sentence.tags)}, {*entities.spans(tags)}
        if true != said and len(found) < count:
            missing, surplus = (
                "; ".join(f"{kind}: {' '.join(sentence.words[a:b])}" for kind, a, b in sorted(part, key=lambda s: s[1]))
                for part in (true - said, said - true)
            )
            text = " ".join(sentence.words)
            found.append({"line": str(sentence.line), "sentence": text, "missing": missing, "surplus": surplus})
    return found


def confusion(truth: Tags, guess: Tags) -> dict[str, Any]:
    """Tokens of each kind (rows) against the kind found (columns), O last."""
    pairs = Counter(
        (entities.split(a)[1] or "O", entities.split(b)[1] or "O")
        for x, y in zip(truth, guess, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    kinds = [*sorted({kind for pair in pairs for kind in pair} - {"O"}), "O"]
    return {"classes": kinds, "counts": [[pairs[a, b] for b in kinds] for a in kinds]}


def write(folder: Path, results: dict[str, Any]) -> None:
    """results.json and report.html, each whole or not at all."""
    with atomic.write_beside(folder / "results.json") as beside:
        beside.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    history = results["history"]
    epochs = [row["epoch"] for row in history]
    sections = [
        report.Section(
            "Training",
            [
                report.plots.curves({"loss": (epochs, [r["loss"] for r in history])}, x="epoch", y="nats a sentence",
                                    title="Training loss"),
                report.plots.curves({"valid": (epochs, [r["valid_f1"] for r in history])}, x="epoch", y="strict F1",
                                    title="Entities found in the validation set"),
                report.table(["setting", "value"], [[k, v] for k, v in results["settings"].items()], "Settings"),
            ],
        )
    ]  # fmt: skip
    for name in ("valid", "test"):
        if name in results:
            sections.append(_section(name, results[name]))
    best = results.get("test", results["valid"])["entities"]["micro avg"]["f1-score"]
    facts = [
        (f"{best:.4f}", f"strict entity F1, {'test' if 'test' in results else 'valid'}"),
        (f"{results['trained_params'] / 1e6:.2f} M", "trained parameters beside the vectors"),
        (f"{results['minutes']:.1f} min", f"training ({results['processor_minutes']:.1f} of processor time)"),
        (f"{results['valid']['sentences_per_s']:.0f}", "sentences tagged a second"),
    ]
    report.write_page(folder / "report.html", "Entities in text", sections, facts=facts)


def _section(name: str, part: dict[str, Any]) -> report.Section:
    columns = ["", "precision", "recall", "f1-score", "support"]
    tables = [
        report.table(
            columns,
            [[row, *(round(v[c], 3) for c in columns[1:4]), int(v["support"])] for row, v in part[kind].items()],
            caption,
        )
        for kind, caption in (("entities", "Entities, strict (kind and both ends)"), ("tokens", "Single tokens, IOB2"))
    ]
    mistakes = report.table(
        ["line", "sentence", "missing", "surplus"],
        [[e[c] for c in ("line", "sentence", "missing", "surplus")] for e in part["examples"]],
        "The first sentences with a mistake",
    )
    said = [f"Left out: {line}" for line in part["skipped"][:20]]
    said += [f"Never seen in training: {', '.join(part['unseen_kinds'])}"] if part["unseen_kinds"] else []
    matrix = report.plots.confusion(part["confusion"]["counts"], part["confusion"]["classes"], title="Tokens by kind")
    return report.Section(name, [*said, *tables, matrix, mistakes])


def _plain(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {name: {key: float(value) for key, value in row.items()} for name, row in report.items()}
