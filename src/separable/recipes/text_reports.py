"""What a sentence classifier is judged by: accuracy and macro F1 over the classes, and how well it tells the unknown.

For the unknown: area under the ROC curve with known sentences as the positive ones, and the share of unknown sentences
refused at the threshold that kept 95 % of validation. Source: Larson et al. 2019, "An Evaluation Dataset for Intent
Classification and Out-of-Scope Prediction", arXiv:1909.02027.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from separable import report
from separable.data.sentences import Corpus
from separable.recipes import result_page

TITLE = "Classes of sentences"
SHOWN_CLASSES = 30  # a confusion matrix of more is drawn of those most often confused


def macro_f1(truth: Sequence[Any], guess: Sequence[Any]) -> float:
    """Mean F1 of the labels that occur in the truth."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, guess, labels=sorted(set(truth)), average="macro", zero_division=0))


def measure(
    part: Corpus,
    ways: Mapping[str, Tensor],
    known_score: Tensor,
    threshold: float,
    classes: Sequence[str],
    unknown_label: str | None,
) -> dict[str, Any]:
    """Scores of each way (probabilities [N, K]), a full report of the first, and the unknown, as plain data."""
    from sklearn.metrics import classification_report

    inside = [n for n, s in enumerate(part.sentences) if s.label != unknown_label]
    outside = [n for n, s in enumerate(part.sentences) if s.label == unknown_label]
    truth = [part.sentences[n].label for n in inside]
    guesses = {name: [classes[k] for k in share[inside].argmax(1).tolist()] for name, share in ways.items()}
    first = guesses[next(iter(ways))]
    unseen = Counter(label for label in truth if label not in set(classes))
    found: dict[str, Any] = {
        "scores": {
            name: {
                "accuracy": sum(a == b for a, b in zip(truth, guess, strict=True)) / max(len(truth), 1),
                "macro_f1": macro_f1(truth, guess) if truth else 0.0,
            }
            for name, guess in guesses.items()
        },
        "sentences": len(inside),
        "unseen_labels": dict(sorted(unseen.items())),
        "classes_without_sentence": sorted(set(classes) - set(truth)),
        "confusion": confusion(truth, first),
        "examples": mistakes(part, inside, first, next(iter(ways.values())).amax(1)),
    }
    if truth:
        rows = classification_report(truth, first, output_dict=True, zero_division=0)
        found["classes"] = {
            name: {key: float(v) for key, v in row.items()} for name, row in rows.items() if isinstance(row, dict)
        }
    if outside and inside:
        found["unknown"] = unknown(known_score, next(iter(ways.values())), threshold, inside, outside)
    return found


def unknown(
    score: Tensor, share: Tensor, threshold: float, inside: Sequence[int], outside: Sequence[int]
) -> dict[str, float]:
    """How well known and unknown sentences are told apart; beside it the largest probability, the usual baseline."""
    from sklearn.metrics import roc_auc_score

    order = [*inside, *outside]
    truth = [1] * len(inside) + [0] * len(outside)
    return {
        "sentences": len(outside),
        "auroc": float(roc_auc_score(truth, score[order].numpy())),
        "auroc_of_largest_probability": float(roc_auc_score(truth, share[order].amax(1).numpy())),
        "unknown_refused": float((score[outside] < threshold).float().mean()),
        "known_kept": float((score[inside] >= threshold).float().mean()),
    }


def confusion(truth: Sequence[str], guess: Sequence[str]) -> dict[str, Any]:
    """Sentences of each label (rows) against the label given (columns); of many labels, those most often confused."""
    pairs = Counter(zip(truth, guess, strict=True))
    names = sorted({*truth, *guess})
    if len(names) > SHOWN_CLASSES:
        wrong: Counter[str] = Counter()
        for (a, b), count in pairs.items():
            if a != b:
                wrong.update({a: count, b: count})
        names = sorted(sorted(names, key=lambda name: (-wrong[name], name))[:SHOWN_CLASSES])
    return {"classes": names, "counts": [[pairs[a, b] for b in names] for a in names]}


def mistakes(
    part: Corpus, inside: Sequence[int], guess: Sequence[str], sure: Tensor, count: int = 20
) -> list[dict[str, Any]]:
    """The sentences with a wrong label whose probability (`sure`, [N]) is largest."""
    pairs = zip(inside, guess, strict=True)
    wrong = [(float(sure[n]), part.sentences[n], given) for n, given in pairs if part.sentences[n].label != given]
    wrong.sort(key=lambda found: -found[0])
    return [
        {"line": str(s.line), "sentence": s.text, "label": s.label, "given": given, "probability": round(chance, 4)}
        for chance, s, given in wrong[:count]
    ]


def text(part: Mapping[str, Any]) -> str:
    """One part's scores as a table for a terminal."""
    lines = [f"{'':>16} accuracy  macro F1   ({part['sentences']} sentences)"]
    lines += [f"{name:>16} {row['accuracy']:8.4f}  {row['macro_f1']:8.4f}" for name, row in part["scores"].items()]
    if "unknown" in part:
        u = part["unknown"]
        lines.append(
            f"{'unknown':>16} AUROC {u['auroc']:.4f} ({u['auroc_of_largest_probability']:.4f} by largest probability); "
            f"{u['unknown_refused']:.1%} of {u['sentences']} refused, {u['known_kept']:.1%} of the known kept"
        )
    return "\n".join(lines + said(part))


def said(part: Mapping[str, Any]) -> list[str]:
    """What a reader has to know of a part: labels never seen, classes without a sentence, lines left out."""
    lines = []
    if part["unseen_labels"]:
        named = ", ".join(f"{label} ({count})" for label, count in part["unseen_labels"].items())
        lines.append(f"Labels that training never saw, counted as wrong: {named}")
    if part["classes_without_sentence"]:
        lines.append(f"Classes without a sentence here: {', '.join(part['classes_without_sentence'])}")
    if part["skipped"]:
        lines.append(f"{len(part['skipped'])} lines left out, the first: {part['skipped'][0]}")
    return lines


def write(folder: Path, results: dict[str, Any]) -> None:
    """results.json and report.html, each whole or not at all."""
    history, parts = results["history"], [name for name in ("test", "valid") if name in results]
    curves = result_page.curve(history, {"loss": "loss"}, "nats", "Training loss")
    if "valid" in results:
        curves += result_page.curve(history, {"valid": "valid_score"}, "macro F1", "Validation")
    facts = headline(parts[0], results[parts[0]]) if parts else []
    own = (results["trained_params"] - results["table_params"]) / 1e6
    facts.append((f"{own:.2f} M", "parameters beside the tables"))
    sections = [section(name, results[name]) for name in parts]
    result_page.write(folder, TITLE, results, sections, curves, facts, results["skipped"]["train"])


def headline(name: str, part: dict[str, Any]) -> list[tuple[str, str]]:
    """(value, what it is) of one part."""
    score = part["scores"]["network"]
    return [
        (f"{score['accuracy']:.4f}", f"accuracy, {name}"),
        (f"{score['macro_f1']:.4f}", f"macro F1, {name}"),
        (f"{part['sentences_per_s']:,.0f}", "sentences a second"),
    ]


def section(name: str, part: dict[str, Any]) -> report.Section:
    """One part for a page."""
    scores = [[way, round(row["accuracy"], 4), round(row["macro_f1"], 4)] for way, row in part["scores"].items()]
    parts: list[str] = [*said(part), report.table(["", "accuracy", "macro F1"], scores, "Scores")]
    if "unknown" in part:
        rows = [[key.replace("_", " "), round(value, 4)] for key, value in part["unknown"].items()]
        parts.append(report.table(["", "value"], rows, "Sentences of no class"))
    if "classes" in part:
        parts.append(result_page.class_table(part["classes"], "Classes"))
    matrix = part["confusion"]
    if matrix["classes"]:
        parts.append(report.plots.confusion(matrix["counts"], matrix["classes"], title="Sentences by class"))
    columns = ["line", "sentence", "label", "given", "probability"]
    wrong = [[example[c] for c in columns] for example in part["examples"]]
    parts.append(report.table(columns, wrong, "The surest mistakes") if wrong else "No mistakes.")
    return report.Section(name, parts)
