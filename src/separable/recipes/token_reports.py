"""What a tagger is judged by: strict entities (seqeval), and single tokens in the classification report's layout.

Strict means that kind, first and last word are all right. Token rows are B- and I- of each kind and O, in IOB2; micro
average equals accuracy there, since every token has one tag. Source: Tjong Kim Sang and De Meulder 2003, section 2.4.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from separable import report
from separable.data import entities
from separable.data.conll import Sentence
from separable.recipes import result_page

TITLE = "Entities in text"
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


def text(part: dict[str, Any]) -> str:
    """Both reports of a part as the tables people know."""
    lines = ["entities", "", *result_page.class_lines(part["entities"])]
    return "\n".join([*lines, "", "tokens", "", *result_page.class_lines(part["tokens"])])


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
    history, parts = results["history"], [name for name in ("test", "valid") if name in results]
    curves = result_page.curve(history, {"loss": "loss"}, "nats a sentence", "Training loss")
    found_title = "Entities found in the validation set"
    curves += result_page.curve(history, {"valid": "valid_f1"}, "strict F1", found_title)
    params = (f"{results['trained_params'] / 1e6:.2f} M", "trained parameters beside the vectors")
    facts = [*headline(parts[0], results[parts[0]]), params]
    sections = [section(name, results[name]) for name in parts]
    result_page.write(folder, TITLE, results, sections, curves, facts, results["skipped"]["train"])


def headline(name: str, part: dict[str, Any]) -> list[tuple[str, str]]:
    """(value, what it is) of one part."""
    return [
        (f"{part['entities']['micro avg']['f1-score']:.4f}", f"strict entity F1, {name}"),
        (f"{part['sentences_per_s']:,.0f}", "sentences tagged a second"),
    ]


def section(name: str, part: dict[str, Any]) -> report.Section:
    """One part for a page."""
    tables = [
        result_page.class_table(part["entities"], "Entities, strict (kind and both ends)"),
        result_page.class_table(part["tokens"], "Single tokens, IOB2"),
    ]
    columns = ["line", "sentence", "missing", "surplus"]
    wrong = [[e[c] for c in columns] for e in part["examples"]]
    mistakes = report.table(columns, wrong, "The first sentences with a mistake") if wrong else "No mistakes."
    said = [f"Left out: {line}" for line in part["skipped"][:20]]
    said += [f"Never seen in training: {', '.join(part['unseen_kinds'])}"] if part["unseen_kinds"] else []
    matrix = report.plots.confusion(part["confusion"]["counts"], part["confusion"]["classes"], title="Tokens by kind")
    return report.Section(name, [*said, *tables, matrix, mistakes])


def _plain(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """As plain numbers; a mean over no row at all is 0, as every share of nothing is here."""
    return {
        name: {key: float(value) if math.isfinite(value) else 0.0 for key, value in row.items()}
        for name, row in report.items()
    }
