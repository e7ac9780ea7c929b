"""Fashion-MNIST with at most 150,000 parameters, and CIFAR-10 with at most 300,000 and 15 M multiply-adds.

    python benchmarks/image.py fashion --data /usr/share/datasets/fashion-mnist --seeds 1 [--epochs 6]
    python benchmarks/image.py cifar10 --data FOLDER      (train.tar and test.tar of class/file.png)

Trains the seeds that are not there yet, below --runs, and goes on with a run that was killed; `--epochs` shortens the
schedule. The test set is read once for each run, by the recipe at its end. Rows: results/image.csv.
"""

import argparse
import datetime
import json
from pathlib import Path

import measured
import torch

from separable import progress
from separable.cost import processor
from separable.recipes import image

SETTINGS = {
    "fashion": {"epochs": 40, "valid_share": 0.05, "batch_size": 128, "learning_rate": 1e-2,
                "augment": "crop,flip,erase"},
    "cifar10": {"epochs": 150, "valid_share": 0.02, "batch_size": 128, "learning_rate": 8e-3, "pad": 4,
                "widths": (32, 96, 144), "depths": (2, 4, 1), "augment": "crop,flip,trivial",
                "checkpoint_every": 1000},
}  # fmt: skip


def places(name: str, data: Path) -> tuple[str, str]:
    """Where a set keeps its training and its test images."""
    return (str(data), str(data)) if name == "fashion" else (str(data / "train.tar"), str(data / "test.tar"))


def settings(name: str, data: Path, out: Path, seed: int, epochs: int, precision: str) -> image.Settings:
    train, test = places(name, data)
    shared = SETTINGS[name] | {"epochs": epochs, "precision": precision, "resume": True, "accelerator": "cpu"}
    return image.Settings(train=train, test=test, out=out, seed=seed, **shared)


def finished(run: Path) -> bool:
    """Whether the recipe came to its end, which is the test."""
    file = run / "results.json"
    return file.exists() and "test" in json.loads(file.read_text())


def row(name: str, run: Path) -> dict:
    """What one finished run said of itself."""
    said = json.loads((run / "results.json").read_text())
    return {
        "data": name,
        "seed": said["settings"]["seed"],
        "params": said["params"],
        "macs": said["macs"],
        "epochs": said["settings"]["epochs"],
        "warm_up": said["settings"]["warm_up"],
        "augment": said["settings"]["augment"],
        "train_images": said["images"]["train"],
        "valid_accuracy": round(said["valid"]["accuracy"], 4),
        "test_accuracy": round(said["test"]["accuracy"], 4),
        "minutes": round(said["minutes"], 1),
        "processor_minutes": round(said["processor_minutes"], 1),
        "precision": said["settings"]["precision"],
        "threads": said["threads"],
        "processor": processor(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(SETTINGS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/image"))
    parser.add_argument("--precision", default="bf16-mixed", help="32-true where the processor has no bfloat16")
    given = parser.parse_args()
    rows, epochs = [], given.epochs or SETTINGS[given.name]["epochs"]
    for seed in map(int, given.seeds.split(",")):
        run = given.runs / f"{given.name}-{epochs}-{seed}"
        if not finished(run):
            image.main(settings(given.name, given.data, run, seed, epochs, given.precision))
        rows.append(row(given.name, run))
        print({k: rows[-1][k] for k in ("data", "seed", "test_accuracy", "params", "macs", "processor_minutes")})
    measured.write("image", rows, ("data", "seed", "epochs"))


if __name__ == "__main__":
    with progress.shown():
        main()
