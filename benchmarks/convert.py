"""Trained networks made separable, no gradient step: what they still say, and their time beside the fastest dense one.

    python benchmarks/convert.py [NETWORK ...] [--only BUDGET ...] [--seeds 1] [--threads 1 2] [--processes 3]

NETWORK is one of `dense_networks.NETWORKS`, whose file says what data it needs; all of them if not given. Each
conversion runs in a process of its own, whose seconds and peak memory are the whole conversion's, planning and timing
with it. Then dense and converted networks are timed together in every runtime, in fresh processes. The ratio is that of
the converted network in its fastest runtime to the dense one in its fastest, round by round: the median over the
rounds, then over the processes. Beside it stands the ratio to the dense one in ONNX Runtime, for dense layers of
`accelerate` can be twice as fast as there.
Every setting was chosen on data outside the calibration draw; what a network is judged on is only read here.
Rows of the networks and budgets asked for are written anew in benchmarks/results/convert.csv, others stay.
"""

import argparse
import csv
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import measured
import torch
from dense_networks import NETWORKS
from rich.console import Console
from rich.table import Table

import separable
from separable import cost, progress, runtimes

FILE = measured.RESULTS / "convert.csv"
ROUNDS, SECONDS = 21, 25.0  # of a comparison, at most


def main() -> None:
    options = arguments()
    if options.convert:
        return convert(options)
    if options.time:
        return time_all(options)
    for name in options.networks or NETWORKS:
        measured.write("convert", network_rows(name, options), ("network", "budget", "seed"))
    show()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", choices=[[], *NETWORKS])
    parser.add_argument("--only", nargs="*", help="budgets, as macs=0.5")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--target", default=None)
    parser.add_argument("--convert-threads", type=int, help="that a latency is planned for; torch's own, if not given")
    parser.add_argument("--convert", help=argparse.SUPPRESS)  # in a process of its own: a file for the network
    parser.add_argument("--budget", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--time", nargs="*", help=argparse.SUPPRESS)  # likewise: files of networks
    return parser.parse_args()


def child(*given: object) -> dict:
    """This file in a process of its own; what it prints last."""
    command = [sys.executable, __file__, *map(str, given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def convert(options: argparse.Namespace) -> None:
    name = options.networks[0]
    asked = NETWORKS[name]
    if options.convert_threads:
        torch.set_num_threads(options.convert_threads)
    dense, data = asked.network(), asked.calibration(options.seed)
    result = {"network": name, "budget": options.budget, "seed": options.seed, "measure": asked.measure}
    if options.budget == "dense":
        made, took = dense, 0.0
        result |= {"macs_share": 1.0, "params_share": 1.0, "target": "", "forms": ""}
    else:
        key, _, amount = options.budget.partition("=")
        began = time.perf_counter()
        with progress.shown():
            done = separable.convert(
                dense, data, {key: float(amount)}, example=data[: asked.batch], target=options.target
            )
        made, took = done.model, time.perf_counter() - began
        forms = [layer.form or "dense" for layer in done.layers if not layer.note or layer.ms_before is not None]
        result |= {
            "macs_share": round(done.macs_after / done.macs_before, 4),
            "params_share": round(done.params_after / done.params_before, 4),
            "target": done.target,
            "forms": "; ".join(f"{forms.count(form)} {form}" for form in dict.fromkeys(forms)),
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.save(made, options.convert)
    score = asked.score(made)
    examples = len(data) if options.budget != "dense" else 0
    result |= {
        "score": round(score, 4),
        "examples": examples,
        "convert_s": round(took),
        "convert_threads": torch.get_num_threads(),
        "peak_gb": round(peak / 1e9, 2),
    }
    print(json.dumps(result))


def time_all(options: argparse.Namespace) -> None:
    asked, threads = NETWORKS[options.networks[0]], options.threads[0]
    asked.network()
    torch.set_num_threads(threads)
    networks = {Path(file).stem: torch.load(file, weights_only=False) for file in options.time}
    names = [name for name in runtimes.FLOAT32 if runtimes.why_not(name) is None]
    example = asked.calibration(0)[: asked.batch]
    found = runtimes.compare(networks, example, names=names, threads=threads, rounds=ROUNDS, seconds=SECONDS)
    rows = [
        {"network": row.network, "runtime": row.runtime, "ms": row.ms, "share": 1 / found.times_as_fast(row)}
        for row in found.rows
        if row.ms
    ]
    print(json.dumps({"rows": rows, "problems": [row.problem for row in found.rows if row.problem]}))


def network_rows(name: str, options: argparse.Namespace) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        cases = {"dense": ("dense", 0)}
        for budget in options.only or NETWORKS[name].budgets:
            cases |= {f"{budget}, {seed}": (budget, seed) for seed in range(options.seeds)}
        files, rows = {}, []
        for number, (budget, seed) in enumerate(cases.values()):
            file = Path(folder) / f"{number}.pt"
            given = ["--target", options.target] if options.target else []
            given += ["--convert-threads", options.convert_threads] if options.convert_threads else []
            row = child(name, "--convert", file, "--budget", budget, "--seed", seed, *given)
            print(row, flush=True)
            rows.append(row)
            if seed == 0:
                files[file.stem] = (file, row)
        for threads in options.threads:
            paths = [file for file, _ in files.values()]
            runs = [child(name, "--threads", threads, "--time", *paths) for _ in range(options.processes)]
            elsewhere = medians(runs, "0", "share").get("onnxruntime", math.nan)  # of the dense network's time
            for stem, (_, row) in files.items():
                runtime, share = min(medians(runs, stem, "share").items(), key=lambda pair: pair[1])
                ms = medians(runs, stem, "ms")[runtime]
                row |= {f"ms_{threads}t": round(ms, 3), f"runtime_{threads}t": runtime}
                row |= {f"time_share_{threads}t": round(share, 3)}
                row |= {f"share_of_onnxruntime_{threads}t": round(share / elsewhere, 3)}
    setting = {
        "processor": cost.processor(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    return [row | setting for row in rows]


def medians(runs: list[dict], network: str, measure: str) -> dict[str, float]:
    """By runtime the median over the processes."""
    found: dict[str, list[float]] = {}
    for row in (row for run in runs for row in run["rows"] if row["network"] == network):
        found.setdefault(row["runtime"], []).append(row[measure])
    return {runtime: statistics.median(values) for runtime, values in found.items()}


def show() -> None:
    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = (
        "network",
        "budget",
        "seed",
        "score",
        "macs_share",
        "time_share_1t",
        "time_share_2t",
        "convert_s",
        "peak_gb",
    )
    table = Table(title="No gradient step; times over the fastest dense network's")
    for name in shown:
        table.add_column(name)
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in shown))
    Console().print(table)
    print(f"written: {FILE}")


if __name__ == "__main__":
    main()
