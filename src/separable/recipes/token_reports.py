"""What a tagger is judged by: strict entities (seqeval), and single tokens in the classification report's layout.

Strict means that kind, first and last word are all right. Token rows are B- and I- of each kind and O, in IOB2; micro
average equals accuracy there, since every token has one tag. Source: Tjong Kim Sang and De Meulder 2003, section 2.4.
"""

from collections.abc import Sequence
from typing import Any

from separable.data import entities

Tags = Sequence[Sequence[str]]


def measure(truth: Tags, guess: Tags) -> dict[str, Any]:
    """Both reports as data: {"entities": {row: {...}}, "tokens": {row: {...}}}; tags of any scheme."""
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
    return {"entities": _plain(strict), "tokens": _plain(tokens)}


def text(report: dict[str, dict[str, float]]) -> str:
    """One report as the table people know."""
    wide = max(len(name) for name in report) + 1
    lines = [" " * wide + "  precision    recall  f1-score   support", ""]
    for name, row in report.items():
        lines.append(
            f"{name:>{wide}}  {row['precision']:9.3f} {row['recall']:9.3f} {row['f1-score']:9.3f} {int(row['support']):9d}"
        )
    return "\n".join(lines)


def _plain(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {name: {key: float(value) for key, value in row.items()} for name, row in report.items()}
