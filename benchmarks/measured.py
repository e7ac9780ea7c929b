"""Rows of results/*.csv: new ones take the place of those that measured the same thing."""

import csv
from collections.abc import Sequence
from pathlib import Path

from separable import atomic

RESULTS = Path(__file__).parent / "results"


def write(name: str, rows: Sequence[dict], keys: Sequence[str]) -> None:
    """Put rows into results/NAME.csv in place of earlier ones with the same `keys`; keep all others."""
    file = RESULTS / f"{name}.csv"
    kept: dict[tuple[str, ...], dict] = {}
    if file.exists():
        with file.open(newline="") as opened:
            kept = {tuple(row[key] for key in keys): row for row in csv.DictReader(opened)}
    kept |= {tuple(str(row[key]) for key in keys): row for row in rows}
    with atomic.write_beside(file) as beside, beside.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())
