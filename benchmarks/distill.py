"""ResNet-20 on CIFAR-10, made separable, then distilled against the dense network; top-1 on the 10,000 test images.

    python benchmarks/distill.py [--budgets macs=0.60 latency=0.5 ...] [--batch 1] [--seeds 0 1 2] [--work FOLDER]

The student of a seed is converted on 1,024 training images of that draw (or read from --student, a module that
torch.save wrote), then trained on all 50,000 for ten epochs with the defaults of `separable.distill`, without a label.
Student and teacher see the same images, flipped and shifted by up to four pixels as the dense network saw them. No
epoch is chosen: the last one counts. Settings were chosen on 5,000 training images held out for it (--held-out), never
on the test images. Below --work lie students and checkpoints: a run that was killed continues where it was.
Data is found as in dense_networks.py.
Writes benchmarks/results/distill.csv, a row when a run is finished.
"""

import argparse
import os
from pathlib import Path

import measured
import torch
import torch.nn.functional as F
from dense_networks import Shuffled, cifar10, percent_right, prepared, trained_resnet20
from torch import Tensor, nn

import separable
from separable import atomic, progress

MOST_SHIFT = 4
BUDGETS = ["macs=0.60", "macs=0.45", "macs=0.30", "macs=0.16", "latency=0.5"]
IMAGES = 1024  # that a student is converted on


def augmented(images: Tensor) -> Tensor:
    """images [N, 3, 32, 32] in bytes, prepared, flipped half of the time, each shifted within zeros."""
    x = prepared(images)
    n, side, padded = len(x), x.shape[-1], F.pad(x, [MOST_SHIFT] * 4)
    down, right = torch.randint(2 * MOST_SHIFT + 1, (2, n, 1))
    rows, columns = down + torch.arange(side), right + torch.arange(side)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--budgets", nargs="+", default=BUDGETS)
    arguments.add_argument("--batch", type=int, default=1, help="that latency is a budget for")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--epochs", type=int, default=10)
    arguments.add_argument("--minutes", type=float, help="a time limit for each distillation instead")
    arguments.add_argument("--feature-weight", type=float, default=1.0, help="0: outputs alone")
    arguments.add_argument("--student", type=Path, help="a module to distil, instead of a conversion")
    arguments.add_argument("--held-out", type=int, default=0, help="training images to test on instead of the test's")
    arguments.add_argument("--work", type=Path, default=Path("runs/distill"), help="students and checkpoints")
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    train, test = cifar10("train"), cifar10("test")
    images = train[0][: len(train[0]) - options.held_out]
    if options.held_out:
        test = train[0][-options.held_out :], train[1][-options.held_out :]
    dense = trained_resnet20()
    for budget in options.budgets if options.student is None else [None]:
        for seed in options.seeds:
            with progress.shown():
                row = run(dense, images, test, budget, seed, options)
            print(row, flush=True)
            if not options.held_out:
                measured.write("distill", [row], ("network", "seed", "epochs", "feature_weight"))


def run(dense: nn.Module, images: Tensor, test: tuple[Tensor, Tensor], budget: str | None, seed: int, options) -> dict:
    """The row of one student, from conversion to test; goes on where an earlier call was killed."""
    name = options.student.stem if options.student else f"convert, {budget}, batch {options.batch}"
    epochs = options.epochs if options.minutes is None else f"at most {options.minutes:g} min"
    work = options.work / f"{name}-{seed}-{len(images)}-{epochs}-{options.feature_weight:g}"
    student = (
        torch.load(options.student, weights_only=False)
        if options.student
        else converted(dense, images, budget, seed, options.batch, work)
    )
    before = percent_right(student.eval(), prepared(test[0]), test[1])
    torch.manual_seed(seed)
    settings = {"epochs": options.epochs, "minutes": options.minutes, "feature_weight": options.feature_weight}
    _, history = separable.distill(
        student, dense, Shuffled(images, augmented), checkpoint=work / "run", resume=True, **settings
    )
    after = percent_right(student.eval(), prepared(test[0]), test[1])
    example = prepared(images[:1])
    macs = separable.cost.count(student, example).macs / separable.cost.count(dense, example).macs
    return {
        "network": name,
        "seed": seed,
        "epochs": epochs,
        "feature_weight": options.feature_weight,
        "top1_percent_before": round(before, 2),
        "top1_percent": round(after, 2),
        "macs_share": round(macs, 4),
        "images": len(images),
        "epoch_s": round(sum(epoch.seconds for epoch in history) / len(history), 1),
        "minutes": round(sum(epoch.seconds for epoch in history) / 60, 1),
        "threads": options.threads,
        "torch": torch.__version__,
    }


def converted(dense: nn.Module, images: Tensor, budget: str, seed: int, batch: int, work: Path) -> nn.Module:
    """The student of a draw, kept in `work`."""
    file = work / "student.pt"
    if not file.exists():
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:IMAGES]
        data, (measure, amount) = prepared(images[chosen]), budget.split("=")
        made = separable.convert(dense, data, {measure: float(amount)}, example=data[:batch]).model
        with atomic.write_beside(file) as beside:
            torch.save(made, beside)
    return torch.load(file, weights_only=False)


if __name__ == "__main__":
    main()
