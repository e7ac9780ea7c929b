"""`separable.convert` beside what else makes a trained network smaller, at the same budgets, on the same examples.

    pip install tensorly torch-pruning
    python benchmarks/peers.py [NETWORK ...] [--budgets macs=0.5 ...] [--epochs 10] [--seeds 0 1 2]

NETWORK is "resnet20", "vgg, fashion" or "spoken digits" of dense_networks.py, whose first lines say what data they
need; the peers, and what they are given, are those of peer_networks.py. Without --epochs no network takes a gradient
step: all see the same 1,024 training examples, without labels. With it each is then trained on all training examples
by `separable.distill` with its defaults, and the architecture that `convert` found is trained from random weights too.
For a budget of latency each peer has all the multiply-adds with which it keeps it, found by timing.
`--budgets macs=0.9` shows that each keeps most of the accuracy where little has to go.

All networks of a budget are timed together in every runtime; a row has the time in the fastest one, and its share of
the dense network's in *its* fastest. Rows go to results/peers.csv, a budget at a time; those that are there are not
made again, and below --work networks and checkpoints are kept, so that a killed run continues.
"""

import argparse
import copy
import csv
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import measured
import torch
from dense_networks import NETWORKS, Dense, Shuffled, shifted
from peer_networks import FORMS, Decomposed, Pruned
from torch import Tensor, nn

import separable
from separable import atomic, cost, progress, runtimes

KEYS = ("network", "budget", "method", "epochs", "seed")
NAMES = ("torch", "torch channels-last", "accelerate", "onnxruntime", "openvino")  # those that `convert` compares


def most_share(network: Callable, limit: float, time_share: Callable[[nn.Module], float]) -> float:
    """Of the multiply-adds, with which a network of this kind takes at most `limit` of the dense one's time."""
    low, high = 0.0, 1.0
    for _ in range(6):
        share = (low + high) / 2
        rough = network(share, fitted=False)
        fits = rough is None or time_share(rough) <= limit
        low, high = (share, high) if fits else (low, share)
    return low


def compared(networks: dict[str, nn.Module], example: Tensor, rounds: int) -> dict[str, runtimes.comparison.Timed]:
    """Each in its fastest runtime."""
    names = [name for name in NAMES if runtimes.why_not(name) is None]
    found = runtimes.compare(networks, example, names=names, rounds=rounds, seconds=60)
    return {name: found.fastest(name) for name in networks}


def made(asked: Dense, dense: nn.Module, x: Tensor, budget: str, work: Path) -> dict[str, nn.Module]:
    """Of each method the network within the budget, without a gradient step; kept in `work`."""
    key, _, amount = budget.partition("=")
    example = x[: asked.batch]

    def time_share(network: nn.Module) -> float:
        fastest = compared({"dense": dense, "rough": network}, example, rounds=9)
        return fastest["rough"].ms / fastest["dense"].ms

    def peer(network: Callable) -> nn.Module | None:
        return network(float(amount) if key == "macs" else most_share(network, float(amount), time_share))

    kinds = {name: partial(Decomposed, form=form) for name, form in FORMS.items()} | {"Torch-Pruning": Pruned}
    makers = {"separable": lambda: separable.convert(dense, x, {key: float(amount)}, example=example).model}
    makers |= {name: partial(lambda kind: peer(kind(dense, x).network), kind) for name, kind in kinds.items()}
    found = {}
    for method, make in makers.items():
        file = work / f"{method}.pt"
        if not file.exists():
            network = make()
            with atomic.write_beside(file) as beside:
                torch.save(network, beside)
        network = torch.load(file, weights_only=False)
        if network is None:
            print(f"{budget}: {method} cannot be had")
        else:
            found[method] = network
    return found


def rows_of(name: str, budget: str, seed: int, options: argparse.Namespace) -> list[dict]:
    asked, work = NETWORKS[name], options.work / f"{name}-{budget}-{seed}"
    dense, x = asked.network(), asked.calibration(seed)
    networks = made(asked, dense, x, budget, work)
    if options.epochs:
        networks["from random weights"] = fresh = copy.deepcopy(networks["separable"])
        torch.manual_seed(seed)
        for module in fresh.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        batches = Shuffled(asked.training(), partial(shifted, most=asked.most_shift))
        for method, network in networks.items():
            torch.manual_seed(seed)
            place = work / f"{method}, {options.epochs} epochs"
            separable.distill(network, dense, batches, epochs=options.epochs, checkpoint=place, resume=True)
    networks = {"dense": dense, **{method: network.eval() for method, network in networks.items()}}
    fastest = compared(networks, x[: asked.batch], rounds=21)
    macs = {method: cost.count(network, x[:1]).macs for method, network in networks.items()}
    return [
        {
            "network": name, "budget": budget, "method": method, "epochs": options.epochs, "seed": seed,
            "macs_share": round(macs[method] / macs["dense"], 4), "score": round(asked.score(network), 2),
            "measure": asked.measure, "ms": round(fastest[method].ms, 4), "runtime": fastest[method].runtime,
            "time_share": round(fastest[method].ms / fastest["dense"].ms, 3), "batch": asked.batch,
            "threads": torch.get_num_threads(), "processor": cost.processor(), "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
        }
        for method, network in networks.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    able = [name for name, asked in NETWORKS.items() if asked.training is not None]
    parser.add_argument("networks", nargs="*", choices=[[], *able])
    parser.add_argument("--budgets", nargs="+", help="as macs=0.5; those of the network, if not given")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="networks and checkpoints")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = measured.RESULTS / "peers.csv"
    there = list(csv.DictReader(file.open())) if file.exists() else []
    there = {tuple(row[key] for key in KEYS if key != "method") for row in there}
    for seed, name in itertools.product(options.seeds, options.networks or able):
        for budget in options.budgets or NETWORKS[name].budgets:
            if (name, budget, str(options.epochs), str(seed)) not in there:
                with progress.shown():
                    rows = rows_of(name, budget, seed, options)
                for row in rows:
                    print(*(row[key] for key in ("method", "macs_share", "score", "time_share", "runtime")), sep=", ")
                measured.write("peers", rows, KEYS)


if __name__ == "__main__":
    main()
