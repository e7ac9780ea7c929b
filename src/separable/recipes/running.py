"""Training as every recipe runs it, on PyTorch Lightning: progress, checkpoints, resuming, averaging, early stopping.

A recipe's LightningModule makes its own batches from (epoch, batch number), so a batch depends on nothing that came
before it, and seeds torch before each step with `seed_step`. Therefore a run that was killed goes on from its last
checkpoint, in the middle of an epoch, to the same final numbers. Several processes and machines: launch the same
command by torchrun.
"""

import logging
import math
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
from torch import Tensor

from separable.errors import InputError
from separable.functional.measure import reproducible
from separable.models import sources
from separable.progress import say
from separable.recipes.rules import Count, Rate, Seed, ShareBelow1, Weight, Whole, one_of

sources.import_torchvision()  # Lightning's metrics import it; see there

import lightning as L  # noqa: E402
from lightning.pytorch import callbacks  # noqa: E402
from lightning.pytorch.loggers import TensorBoardLogger  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy  # noqa: E402

LOG_EVERY = 20  # steps between two points of a curve
Precision = Annotated[str, one_of("32-true", "bf16-mixed", "16-mixed")]
Accelerator = Annotated[str, one_of("auto", "cpu", "gpu", "cuda")]


@dataclass
class Running:
    """Settings that all recipes share."""

    out: Path  # everything is written below this folder
    epochs: Count = 10  # times that all of `train` is seen
    learning_rate: Rate = 1e-3  # the highest; it rises to it and falls from it
    find_lr: bool = False  # search the learning rate first, in 100 steps, by Lightning's finder
    seed: Seed = 1  # of every draw
    resume: bool = False  # go on from the last checkpoint below `out`, where there is one
    precision: Precision = "32-true"  # Lightning's words: "bf16-mixed", "16-mixed" on a GPU
    clip: Weight = 5.0  # largest norm of the gradient; 0 for no limit
    average: ShareBelow1 = 0.995  # share of the old in the running average of weights; 0 for none
    patience: Whole = 0  # epochs without a better validation score after which to stop; 0 for never
    checkpoint_every: Count = 100  # steps
    accelerator: Accelerator = "auto"  # or cpu, gpu
    devices: Count = 1  # processes on each machine
    nodes: Count = 1  # machines


class Steps:
    """Numbers 0 ... count - 1 in place of batches, which the module makes itself; no state, so any can be next."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        return iter(range(self.count))

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to take up: the number of the next batch is in Lightning's own checkpoint."""


class Training(L.LightningModule):
    """What every recipe's module tells of its training, kept in its checkpoints so that a resumed run tells it all.

    `training_step` returns what `noted` gives; the end of a validation calls `end_epoch` with what it measured.
    """

    settings: Any  # the recipe's, set by its module
    is_a_search = False  # of the learning rate, which goes on until the loss falls apart

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []  # of each step of this epoch, of this process
        self.history: list[dict[str, float]] = []  # a row an epoch
        self.began = (0.0, 0.0)  # on the wall clock and the processor's, in seconds; earlier by what a resumed run took

    def noted(self, loss: Tensor) -> Tensor:
        """The loss of a step, noted for the mean of its epoch and for TensorBoard."""
        self.losses.append(loss.detach())  # read now and then alone: a GPU is not waited for
        if self.global_step % LOG_EVERY == 0:
            self.check_finite(self.global_step + 1)
            self.log("loss", loss)
        return loss

    def check_finite(self, step: int) -> None:
        """Stop a training that fell apart, before a checkpoint of it takes the place of a good one.

        step: number of the last loss noted, from 1. In half precision on a GPU the scaler leaves out a step with an
        infinite gradient, so only many losses in a row count there.
        """
        finite = [math.isfinite(loss) for loss in self.losses[: -LOG_EVERY - 1 : -1]]  # the last first
        lost = finite.index(True) if True in finite else len(finite)
        if lost >= (LOG_EVERY if self.settings.precision == "16-mixed" else 1) and not self.is_a_search:
            self._stop(f"the loss became {float(self.losses[-lost]):g} at step {step - lost + 1}")

    def _stop(self, told: str) -> NoReturn:
        raise InputError("learning_rate", self.settings.learning_rate, f"{told}; take a smaller one")

    def end_epoch(self, **measured: float) -> None:
        """Add a row to the history: the epoch, its mean training loss, and what was measured."""
        self.check_finite(self.global_step)
        loss = sum(map(float, self.losses)) / max(len(self.losses), 1)
        self.losses = []
        self.history.append({"epoch": self.current_epoch + 1, "loss": loss, **measured})

    def spent_s(self) -> tuple[float, float]:
        """Seconds of training, and of processor time, up to now; of a killed run up to its last checkpoint."""
        return time.perf_counter() - self.began[0], time.process_time() - self.began[1]

    def on_fit_start(self) -> None:
        """Start the clocks: Lightning calls it behind `on_load_checkpoint`, which set them back."""
        self.began = self.began[0] + time.perf_counter(), self.began[1] + time.process_time()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite(self.global_step)
        if not all(weight.isfinite().all() for weight in self.parameters()):
            self._stop(f"weights became infinite or nan by step {self.global_step}")
        checkpoint |= {"history": self.history, "losses": [*map(float, self.losses)], "spent_s": self.spent_s()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is not in it is of a checkpoint made before it was kept."""
        self.history = checkpoint["history"]
        self.losses = [torch.tensor(loss) for loss in checkpoint.get("losses", [])]
        wall_s, processor_s = checkpoint.get("spent_s", (0.0, 0.0))
        self.began = -wall_s, -processor_s


class Averaging(callbacks.WeightAveraging):
    """Exponential average of the weights, short-sighted at first; validation and the saved network use it.

    Source: Polyak and Juditsky 1992; the growing horizon is TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay: float):
        @torch.no_grad()
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            horizon = (1 + float(count)) / (10 + float(count))
            torch._foreach_lerp_(averaged, current, 1 - min(decay, horizon))

        super().__init__(use_buffers=False, multi_avg_fn=average)


class Lines(callbacks.Callback):
    """One line an epoch on standard error, where no bar can be drawn."""

    def on_validation_end(self, trainer: L.Trainer, module: Training) -> None:  # type: ignore[override]
        told = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "epochs_done"}
        told["loss"] = module.history[-1]["loss"]  # of the epoch; Lightning has that of some step
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in sorted(told.items()))
        say(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {numbers}")


def seed_step(seed: int, module: L.LightningModule) -> None:
    """Seed torch for this step and process: what is drawn does not depend on the steps before."""
    torch.manual_seed((seed * 1_000_003 + module.global_step) * 1024 + module.global_rank)


def fit(module: Training, settings: Running, monitor: str) -> Path:
    """Train to the end; the checkpoint of the epoch whose `monitor`, logged in validation, was highest.

    Writes checkpoints to out/checkpoints and TensorBoard's files to out/tensorboard.
    """
    folder = settings.out / "checkpoints"
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    quiet()
    watching: list[callbacks.Callback] = [
        _kept(folder, "last", every_n_train_steps=settings.checkpoint_every),
        _kept(folder, "best", monitor=monitor, mode="max"),
        _kept(folder, "last", every_n_epochs=1),  # behind the best, which it must know when a run goes on from it
    ]
    watching += [callbacks.RichProgressBar(console_kwargs={"stderr": True})] if sys.stderr.isatty() else [Lines()]
    watching += [Averaging(settings.average)] if settings.average else []
    watching += [callbacks.EarlyStopping(monitor, patience=settings.patience, mode="max")] if settings.patience else []
    trainer = L.Trainer(
        max_epochs=settings.epochs,
        precision=settings.precision,  # type: ignore[arg-type]
        gradient_clip_val=settings.clip or None,
        callbacks=watching,
        logger=TensorBoardLogger(settings.out, name="", version="tensorboard"),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        log_every_n_steps=LOG_EVERY,
        **machines(settings),
    )
    try:
        with reproducible():
            trainer.fit(module, ckpt_path=last if last.exists() else None, weights_only=True)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        rule = "its checkpoints are of another network, or of other data; choose another out"
        raise InputError("resume", str(settings.out), rule) from error
    return best


def _kept(folder: Path, name: str, **when: Any) -> callbacks.ModelCheckpoint:
    return callbacks.ModelCheckpoint(folder, name, enable_version_counter=False, auto_insert_metric_name=False, **when)


def check(settings: Running) -> None:
    """Refuse to begin a run over an earlier one, and processes that are not those that were launched."""
    traces = ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "results.json")
    if not settings.resume and any((settings.out / trace).exists() for trace in traces):
        rule = "holds checkpoints or results of an earlier run; go on with resume, or choose another"
        raise InputError("out", str(settings.out), rule)
    launched = world()[1]
    if launched != settings.devices * settings.nodes:
        rule = f"must, times nodes, be the number of processes that run ({launched}); torchrun --nproc-per-node sets it"
        raise InputError("devices", settings.devices, rule)


def machines(settings: Running) -> dict[str, Any]:
    """Lightning's arguments for one process, several, or several machines (gloo without a GPU)."""
    together = settings.devices * settings.nodes > 1
    accelerator = settings.accelerator
    gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    strategy = (
        DDPStrategy(process_group_backend="nccl" if gpu else "gloo", broadcast_buffers=False) if together else "auto"
    )
    return {
        "accelerator": accelerator if accelerator != "auto" else ("gpu" if gpu else "cpu"),
        "devices": settings.devices,
        "num_nodes": settings.nodes,
        "strategy": strategy,
    }


def world() -> tuple[int, int]:
    """(rank, processes) as torchrun tells them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def quiet() -> None:
    """What Lightning says of loaders without workers and of its own tips is not about a user's work."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    ignored = ("does not have many workers", "litlogger", "LeafSpec", "exists and is not empty", "the logging interval")
    for told in (f".*{words}.*" for words in ignored):
        warnings.filterwarnings("ignore", message=told)
