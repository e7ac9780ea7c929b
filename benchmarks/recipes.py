"""A short form of each recipe on real data, for anyone to check in ten minutes on two cores: `results/recipes.csv`.

    python benchmarks/recipes.py [tokens] [text] [audio] [image] --data FOLDER [--fashion FOLDER] [--seed 1]

FOLDER holds conll2003/ and glove/ (tokens), banking77/ (text), fsdd/ (audio); --fashion names the idx files of
Fashion-MNIST. A recipe whose data is not there is skipped, and says so. Each is trained for a few epochs and judged on
data it was not trained on: testa of CoNLL-2003, the test part of Banking77, takes 5-9 of the digits, and 3,000 training
images held out. No setting is chosen by what it says. A score below its floor ends with 1.
"""

import argparse
import csv
import datetime
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokens import glove

from separable import progress
from separable.cost import processor
from separable.errors import InputError
from separable.recipes import audio, image, text, tokens

RESULTS = Path(__file__).parent / "results" / "recipes.csv"
# of each recipe what is measured and the least it must be: what a broken recipe misses, not what a good one reaches
FLOORS = {
    "tokens": ("strict F1", 0.80),
    "text": ("accuracy", 0.60),
    "audio": ("accuracy", 0.70),
    "image": ("accuracy", 0.85),
}
Job = Callable[[Path, Path, dict[str, Any]], dict[str, Any]]


def short_tokens(data: Path, out: Path, shared: dict[str, Any]) -> dict[str, Any]:
    folder = data / "conll2003"
    words = glove(data / "glove", out / "glove.safetensors") if (data / "glove").is_dir() else None
    train = next((path for path in (folder / "eng.train", folder / "eng.train.xz") if path.exists()), folder)
    settings = tokens.Settings(
        train=train, valid=folder / "eng.testa", vectors=words, context="document", epochs=2, out=out / "run", **shared
    )
    found = tokens.main(settings)
    return {**found, "score": found["valid"]["entities"]["micro avg"]["f1-score"], "epochs": settings.epochs}


def short_text(data: Path, out: Path, shared: dict[str, Any]) -> dict[str, Any]:
    folder = data / "banking77"
    settings = text.Settings(
        train=folder / "train.csv.xz", test=folder / "test.csv.xz", epochs=4, batch=64, out=out / "run", **shared
    )
    found = text.main(settings)
    return {**found, "score": found["test"]["scores"]["network"]["accuracy"], "epochs": settings.epochs}


def short_audio(data: Path, out: Path, shared: dict[str, Any]) -> dict[str, Any]:
    settings = audio.Settings(
        data=data / "fsdd" / "fsdd_recordings.tar.xz", names="(?P<label>[0-9])_(?P<speaker>[a-z]+)_(?P<take>[0-9]+)",
        valid="take=5-9", network="causal", epochs=4, out=out / "run", **shared,
    )  # fmt: skip
    found = audio.main(settings)
    return {**found, "score": found["valid"]["accuracy"], "epochs": settings.epochs}


def short_image(data: Path, out: Path, shared: dict[str, Any]) -> dict[str, Any]:
    settings = image.Settings(train=str(data), valid_share=0.05, epochs=2, out=out / "run", **shared)
    found = image.main(settings)
    return {**found, "score": found["valid"]["accuracy"], "epochs": settings.epochs}


JOBS: dict[str, Job] = {"tokens": short_tokens, "text": short_text, "audio": short_audio, "image": short_image}


def run(name: str, data: Path, seed: int) -> dict[str, Any] | None:
    """A row; None where the data is not there."""
    measure, floor = FLOORS[name]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        try:
            found = JOBS[name](data, Path(out), {"seed": seed, "accelerator": "cpu"})
        except InputError as error:
            print(f"{name}: skipped, {error}")
            return None
    return {
        "recipe": name, "epochs": found["epochs"], "seed": seed, "measure": measure, "score": round(found["score"], 4),
        "floor": floor, "minutes_in_all": round((time.perf_counter() - began) / 60, 2),
        "processor_minutes": round(found["processor_minutes"], 2), "threads": torch.get_num_threads(),
        "processor": processor(), "torch": torch.__version__, "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"{', '.join(JOBS)}; all where none is named")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SEPARABLE_DATA", "../shared/data")))
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    unknown = set(given.recipes) - set(JOBS)
    if unknown:
        parser.error(f"no recipe is called {', '.join(sorted(unknown))}")
    below = 0
    for name in given.recipes or JOBS:
        row = run(name, given.fashion if name == "image" else given.data, given.seed)
        if row is None:
            continue
        new = not RESULTS.is_file()
        with RESULTS.open("a", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        verdict = "reached" if row["score"] >= row["floor"] else "NOT reached"
        told = f"{row['measure']} {row['score']:.4f} after {row['epochs']} epochs, {row['minutes_in_all']:.1f} minutes"
        print(f"{name}: {told}; at least {row['floor']} {verdict}")
        below += row["score"] < row["floor"]
    return 1 if below else 0


if __name__ == "__main__":
    with progress.shown():
        code = main()
    sys.exit(code)
