"""What the audio recipe reaches on the Free Spoken Digit Dataset: unseen takes in three seeds, each speaker held out.

    SEPARABLE_DATA=FOLDER python benchmarks/audio.py [causal] [small]

FOLDER holds fsdd/fsdd_recordings.tar.xz. Takes 5-9 choose the epoch; takes 0-4, or all takes of the held-out speaker,
are the test set and are read once in each run. A row a run in results/audio.csv as soon as it is done; a run that has a
row is not made again. What a stream costs is measured on the first causal network: results/audio_stream.csv.
"""

import csv
import datetime
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import separable
from separable import progress
from separable.cost import processor
from separable.recipes import audio
from separable.recipes.saved_listener import NETWORKS, Listener

ARCHIVE = Path(os.environ.get("SEPARABLE_DATA", "../shared/data")) / "fsdd" / "fsdd_recordings.tar.xz"
NAMES = "(?P<label>[0-9])_(?P<speaker>[a-z]+)_(?P<take>[0-9]+)"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
RUNS = [("take=0-4", seed) for seed in (1, 2, 3)] + [(f"speaker={name}", 1) for name in SPEAKERS]
RESULTS = Path(__file__).parent / "results"


def run(network: str, test: str, seed: int) -> dict:
    """One training; its row."""
    with tempfile.TemporaryDirectory() as folder:
        settings = audio.Settings(
            out=Path(folder), data=ARCHIVE, names=NAMES, network=network, test=test, valid="take=5-9", seed=seed
        )
        found = audio.main(settings)
        if (network, test, seed) == ("causal", *RUNS[0]):
            append(RESULTS / "audio_stream.csv", stream(Listener.load(Path(folder) / "network")))
    return {
        "network": network,
        "test": test,
        "seed": seed,
        "test_accuracy": round(found["test"]["accuracy"], 5),
        "test_clips": found["test"]["clips"],
        "valid_accuracy": round(found["valid"]["accuracy"], 5),
        "params": found["params"],
        "macs": found["macs"],
        "train_clips": found["clips"]["rest"],
        "epochs": settings.epochs,
        "minutes": round(found["minutes"], 2),
        "processor_minutes": round(found["processor_minutes"], 2),
        **where(),
    }


def stream(listener: Listener, seconds: int = 5, piece: int = 160) -> dict:
    """A stream in pieces of 20 ms is checked against the whole sound, then timed."""
    samples = 0.1 * torch.randn(seconds * listener.features.rate, generator=torch.Generator().manual_seed(0))
    whole, pieces, heard, spent_ms = listener.stream().hear(samples), listener.stream(), [], []
    for part in samples.split(piece):
        began = time.process_time()  # of this process alone: others share the machine
        heard.append(pieces.hear(part))
        spent_ms.append(1000 * (time.process_time() - began))
    difference = float((torch.cat(heard) - whole).abs().max())
    assert difference < 1e-3, difference
    return {
        "network": "causal",
        "piece_ms": 1000 * piece / listener.features.rate,
        "median_processor_ms": round(statistics.median(spent_ms), 3),
        "p80_processor_ms": round(statistics.quantiles(spent_ms, n=5)[3], 3),
        "remembered_bytes": pieces.remembered_bytes,
        "largest_difference": difference,
        "seconds_heard": seconds,
        **where(),
    }


def where() -> dict:
    return {
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "torch": torch.__version__,
        "separable": separable.__version__,
        "date": datetime.date.today().isoformat(),
    }


def rows(file: Path) -> list[dict]:
    if not file.is_file():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def append(file: Path, row: dict) -> None:
    new = not file.is_file()
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def main(networks: list[str]) -> None:
    torch.set_num_threads(1)
    file = RESULTS / "audio.csv"
    epochs = str(audio.Settings.epochs)  # rows of other numbers stand beside and are not counted
    done = {(row["network"], row["test"], int(row["seed"])) for row in rows(file) if row["epochs"] == epochs}
    for network in networks:
        for test, seed in RUNS:
            if (network, test, seed) not in done:
                append(file, run(network, test, seed))
    for network in networks:
        mine = [row for row in rows(file) if (row["network"], row["epochs"]) == (network, epochs)]
        for name, part in (("takes 0-4", "take"), ("speakers held out", "speaker")):
            some = [float(row["test_accuracy"]) for row in mine if row["test"].startswith(part)]
            if some:
                print(f"{network:7} {name:18} {statistics.mean(some):.4f}  ({', '.join(f'{x:.4f}' for x in some)})")


if __name__ == "__main__":
    with progress.shown():
        main([name for name in sys.argv[1:] if name in NETWORKS] or ["causal", "small"])
