"""Write the first table of docs/recipes.md, what every recipe reached, from the rows in results/; it measures nothing.

    python benchmarks/reached.py

A line a number: the mean over the seeds that were run, beside the one it is held against. tests/test_docs.py holds the
page equal to what this makes.
"""

import csv
import statistics
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "recipes.md"
BEGIN, END = "<!-- written by benchmarks/reached.py -->", "<!-- end of what it wrote -->"


@dataclass
class Claim:
    """One measured number: rows of a CSV that agree with `rows`, the mean of a column over them."""

    told: str
    measure: str
    reference: str  # the number it is held against
    script: str  # under benchmarks/, with its arguments; its results have its name
    rows: dict[str, str]
    column: str
    minutes: str = "processor_minutes"

    def line(self) -> str:
        found = self.found()
        values = [float(row[self.column]) for row in found]
        spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
        spent = [float(row[self.minutes]) for row in found if row[self.minutes]]
        minutes = f"{statistics.fmean(spent):.1f}" if spent else ""
        command = f"`python benchmarks/{self.script}`"
        shown = f"**{statistics.fmean(values):.4f}**{spread}"
        machine = f"{found[0]['processor']}, {found[0]['threads']} thread"
        cells = (self.told, self.measure, shown, self.reference, str(len(values)), minutes, machine, command)
        return f"| {' | '.join(cells)} |"

    def found(self) -> list[dict[str, str]]:
        name = self.script.split(".")[0]
        with (HERE / "results" / f"{name}.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in self.rows.items())]
        return [row for row in rows if row["seed"] != "mean"]


def entities(told: str, reference: str, script: str, **rows: str) -> Claim:
    return Claim(told, "strict F1", reference, f"tokens.py {script}", rows, "test_f1")


def sentences(told: str, task: str, way: str, column: str, reference: str) -> Claim:
    measure = {"macro_f1": "macro F1", "auroc": "AUROC of the unknown"}.get(column, column)
    rows = {"task": task, "way": way}
    script = f"text.py {task} --data DATA --seeds 1,2,3"
    return Claim(told, measure, reference, script, rows, column, "train_processor_minutes")


def sounds(told: str, rows: dict[str, str], reference: str) -> Claim:
    rows = {"network": "causal", "epochs": "24"} | rows
    return Claim(told, "accuracy", reference, "audio.py causal", rows, "test_accuracy")


def images(told: str, name: str, epochs: str, reference: str) -> Claim:
    script = f"image.py {name} --data FOLDER --epochs {epochs}"
    return Claim(told, "accuracy", reference, script, {"data": name, "epochs": epochs}, "test_accuracy")


CLAIMS = (
    entities("CoNLL-2003 testb, a network of sentences", "0.905", "--data DATA --train 1,2,3 --kind sentence",
             kind="sentence", context="sentence"),
    entities("CoNLL-2003 testb, a network of documents, sentence by sentence", "0.905", "--data DATA --train 1,2,3",
             kind="document", context="sentence"),
    entities("CoNLL-2003 testb, the same, whole documents", "0.912", "--data DATA --train 1,2,3",
             kind="document", context="document"),
    entities("CoNLL-2003 testb, with a pretrained encoder, frozen, sentence by sentence", "0.905",
             "--data DATA --train 1,2,3 --kind frozen", kind="frozen", context="sentence"),
    entities("CoNLL-2003 testb, the same, whole documents", "0.912", "--data DATA --train 1,2,3 --kind frozen",
             kind="frozen", context="document"),
    entities("CoNLL-2003 testb, the encoder trained too, sentence by sentence", "0.905",
             "--data DATA --train 1 --kind tuned", kind="tuned", context="sentence"),
    entities("CoNLL-2003 testb, the same, whole documents", "0.912", "--data DATA --train 1 --kind tuned",
             kind="tuned", context="document"),
    sentences("Financial PhraseBank, network", "phrasebank", "network", "macro_f1", "0.86"),
    sentences("Financial PhraseBank, network and SVM", "phrasebank", "network with SVM", "macro_f1", "0.86"),
    sentences("Financial PhraseBank, three networks", "phrasebank", "networks averaged", "macro_f1", "0.86"),
    sentences("Financial PhraseBank, TF-IDF and SVM", "phrasebank", "TF-IDF and SVM", "macro_f1", "(to be beaten)"),
    sentences("Chinese headlines, network", "chinese", "network", "accuracy", "0.935"),
    sentences("Chinese headlines, TF-IDF and SVM", "chinese", "TF-IDF and SVM", "accuracy", "(to be beaten)"),
    sentences("CLINC150 in-scope, network", "clinc150", "network", "accuracy", "0.940"),
    sentences("CLINC150 in-scope, three networks", "clinc150", "networks averaged", "accuracy", "0.940"),
    sentences("CLINC150, network", "clinc150", "network", "auroc", "0.965"),
    sentences("CLINC150 in-scope, TF-IDF and SVM", "clinc150", "TF-IDF and SVM", "accuracy", "(to be beaten)"),
    sentences("CLINC150 in-scope, taught by MiniLM", "clinc150", "MiniLM-taught network", "accuracy", "0.940"),
    sounds("Spoken digits, takes 0 to 4", {"test": "take=0-4"}, "0.985"),
    images("Fashion-MNIST", "fashion", "40", "0.935"),
    images("CIFAR-10", "cifar10", "150", "0.91"),
)  # fmt: skip


def table() -> str:
    head = ("", "measure", "reached", "held against", "runs", "processor minutes a run", "machine", "command")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(claim.line() for claim in CLAIMS)]
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its table made anew."""
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n\n{table()}\n\n{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
