"""Entities on CoNLL-2003 with GloVe: strict F1 of three seeds, sentence by sentence and with the document as context.

    python benchmarks/tokens.py --data FOLDER [--runs runs/tokens] [--train 1,2,3]

FOLDER holds conll2003/ (eng.train or eng.train.xz, eng.testa, eng.testb) and glove/ (words one a line and float16
vectors beside them, or the usual text). `--train` names the seeds to train first (12 epochs each; a run that is there
is not repeated); without it only runs that are finished are measured. Everything was chosen on testa; testb is read
here, once for each finished network. Rows: results/tokens.csv, and each row of both reports in results/tokens_rows.csv.
"""

import argparse
import csv
import datetime
import json
import lzma
import statistics
import time
from pathlib import Path

import torch

from separable.cost import processor
from separable.data import conll, vectors
from separable.models.saved_tagger import SavedTagger
from separable.recipes import token_reports, tokens

RESULTS = Path(__file__).parent / "results"
SIZE = 100
# f1 of each row of the reference report that these networks are held against
REFERENCE = {
    "B-LOC": 0.916, "I-LOC": 0.850, "B-MISC": 0.865, "I-MISC": 0.809, "B-ORG": 0.906, "I-ORG": 0.902,
    "B-PER": 0.960, "I-PER": 0.982, "O": 0.994, "micro avg": 0.973, "macro avg": 0.909, "weighted avg": 0.973,
}  # fmt: skip


def glove(folder: Path, kept: Path) -> Path:
    """The vectors as safetensors, made once from float16 and a list of words, or the text file as it is."""
    words = next(folder.glob("*.words.txt"), None)
    if words is None:
        return next(folder.glob("*.txt"))
    if not kept.exists():
        with lzma.open(next(folder.glob("*.f16.xz"))) as file:
            table = torch.frombuffer(bytearray(file.read()), dtype=torch.float16).view(-1, SIZE)
        known = words.read_text(encoding="utf-8").rstrip("\n").split("\n")
        kept.parent.mkdir(parents=True, exist_ok=True)
        vectors.save(vectors.Vectors({word: place for place, word in enumerate(known)}, table), kept)
    return kept


def speed(saved: SavedTagger, sentences: list[list[str]], documents: list[int]) -> float:
    """Sentences a second of wall time, best of five: on a shared machine the others only slow it down."""
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        saved.tag(sentences, documents)
        best = max(best, len(sentences) / (time.perf_counter() - began))
    return best


def measure(run: Path, test: conll.Corpus) -> dict:
    """One finished run: what it said of itself, and testb."""
    said, saved = json.loads((run / "results.json").read_text()), SavedTagger.load(run / "network")
    words, documents = [s.words for s in test.sentences], [s.document for s in test.sentences]
    report = token_reports.measure([s.tags for s in test.sentences], saved.tag(words, documents))
    strict = report["entities"]["micro avg"]
    row = {
        "context": saved.context,
        "seed": said["settings"]["seed"],
        "valid_f1": round(said["valid"]["entities"]["micro avg"]["f1-score"], 4),
        "test_precision": round(strict["precision"], 4),
        "test_recall": round(strict["recall"], 4),
        "test_f1": round(strict["f1-score"], 4),
        "epochs": said["settings"]["epochs"],
        "trained_params": said["trained_params"],
        "minutes": round(said["minutes"], 1),
        "processor_minutes": round(said["processor_minutes"], 1),
        "sentences_per_s": round(speed(saved, words, documents)),
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
    }
    return {"row": row, "tokens": report["tokens"]}


def rows_of_reports(measured: list[dict]) -> list[dict]:
    """Mean f1 of each row of the token report over the seeds, and its distance from the reference."""
    found = []
    for context in ("sentence", "document"):
        reports = [m["tokens"] for m in measured if m["row"]["context"] == context]
        for name, reference in REFERENCE.items() if reports else ():
            f1 = statistics.mean(report[name]["f1-score"] for report in reports)
            found.append(
                {
                    "context": context, "row": name, "f1": round(f1, 3), "reference_f1": reference,
                    "distance": round(f1 - reference, 3), "seeds": len(reports),
                    "support": int(reports[0][name]["support"]),
                }
            )  # fmt: skip
    return found


def write(name: str, rows: list[dict]) -> None:
    with (RESULTS / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--train", default="")
    given = parser.parse_args()
    folder = given.data / "conll2003"
    train = next(path for path in (folder / "eng.train", folder / "eng.train.xz") if path.exists())
    known = glove(given.data / "glove", given.runs / "glove.safetensors")
    for seed in filter(None, given.train.split(",")):
        for context in ("sentence", "document"):
            out = given.runs / f"{context[0].upper()}{seed}"
            if not (out / "results.json").exists():
                tokens.main(
                    tokens.Settings(
                        out=out, train=train, valid=folder / "eng.testa", vectors=known, context=context,
                        seed=int(seed), resume=True,
                    )
                )  # fmt: skip
    test = conll.read(folder / "eng.testb")
    measured = [measure(path.parent, test) for path in sorted(given.runs.glob("[SD][0-9]/results.json"))]
    write("tokens.csv", [m["row"] for m in measured])
    write("tokens_rows.csv", rows_of_reports(measured))
    for context in ("sentence", "document"):
        scores = [m["row"]["test_f1"] for m in measured if m["row"]["context"] == context]
        if scores:
            print(f"{context}: strict F1 on testb, mean of {len(scores)} seeds: {statistics.mean(scores):.4f} {scores}")


if __name__ == "__main__":
    main()
