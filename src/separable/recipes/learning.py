"""From a recipe's module to its best weights: AdamW with a rate for each step, and Lightning's search for the rate.

Sources: Loshchilov and Hutter 2017, arXiv:1608.03983 (cosine), 2019, arXiv:1711.05101 (AdamW); Smith 2017,
arXiv:1506.01186, section 3.3 (the search).
"""

import contextlib
import copy
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from separable import atomic
from separable.errors import InputError
from separable.progress import say
from separable.recipes import beginning
from separable.recipes.running import L, Running, Training, fit, machines, quiet, world

STEPS, LOWEST, HIGHEST, SETTLED = 100, 1e-5, 1.0, 10  # of the search
Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


def adamw(parameters: Parameters, settings: Running, share: Callable[[int], float], **options: Any) -> dict[str, Any]:
    """What `configure_optimizers` gives to Lightning. share: of the learning rate, at each step."""
    fused = settings.precision == "32-true"  # Lightning refuses to clip what the fused one holds in mixed precision
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, fused=fused, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def half_cosine(steps: int, least: float = 0.01) -> Callable[[int], float]:
    """Up in a twentieth of the steps, then down along half a cosine, to the share `least`."""
    warm = max(1, steps // 20)
    return lambda step: min(1.0, (step + 1) / warm) * max(least, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def train(module: Training, settings: Running, monitor: str) -> dict[str, Any] | None:
    """Search the learning rate where asked for, `fit`, and give the module the best weights, on the processor.

    Returns:
        What every result tells: settings, minutes, threads, history, the search. None in all processes but the first,
        which alone saves and reports.
    """
    beginning.keep(settings)
    found = {"learning_rate_search": find(module, settings)} if settings.find_lr else {}
    best = fit(module, settings, monitor)
    wall_s, processor_s = module.spent_s()
    if world()[0]:
        return None
    module.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
    module.cpu()
    return {
        "settings": {name: str(value) for name, value in vars(settings).items()},
        "minutes": wall_s / 60,
        "processor_minutes": processor_s / 60,
        "threads": torch.get_num_threads(),
        "history": module.history,
        **found,
    }


def find(module: Training, settings: Running) -> dict[str, Any]:
    """Search a learning rate on a copy of the module and set it; all rates of the settings keep their ratio to it.

    What was found is written to out/learning_rate.json, and a run that goes on takes it from there.

    Returns:
        "given" and "chosen", and of each step but the first few the "rates" and the "losses", smoothed.

    Raises:
        InputError: the run has several processes, or the loss never fell.
    """
    if settings.devices * settings.nodes > 1:
        raise InputError("find_lr", "yes", "is a search in one process; run it there, then give --learning-rate")
    file = settings.out / "learning_rate.json"
    if settings.resume and file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
    else:
        found = _search(module, settings)
        with atomic.write_beside(file) as beside:
            beside.write_text(json.dumps(found), encoding="utf-8")
    say(f"learning rate {found['chosen']:.2g}, found in {STEPS} steps (given: {found['given']:.2g})")
    for entry in fields(settings):
        if entry.name.endswith("learning_rate"):
            setattr(settings, entry.name, getattr(settings, entry.name) * found["chosen"] / found["given"])
    return found


def _search(module: Training, settings: Running) -> dict[str, Any]:
    from lightning.pytorch.tuner.tuning import Tuner

    quiet()
    Path(settings.out).mkdir(parents=True, exist_ok=True)
    trainer = L.Trainer(
        max_epochs=-1,
        precision=settings.precision,  # type: ignore[arg-type]
        gradient_clip_val=settings.clip or None,
        default_root_dir=settings.out,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        **machines(settings),
    )
    given, copied = settings.learning_rate, copy.deepcopy(module)
    copied.is_a_search = True
    bar = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    with bar:  # it knows no other way to leave its bar away
        search = Tuner(trainer).lr_find(copied, min_lr=LOWEST, max_lr=HIGHEST, num_training=STEPS, update_attr=False)
    assert search is not None  # it gives none to a trainer of another kind alone
    pairs = [*zip(search.results["lr"], search.results["loss"], strict=False)][SETTLED:]  # its average begins too low
    rates = [rate for rate, loss in pairs if math.isfinite(loss)]
    losses = [loss for _, loss in pairs if math.isfinite(loss)]
    return {"given": given, "chosen": steepest(rates, losses), "rates": rates, "losses": losses}


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls most for the same factor, in two digits; the last point is left out.

    Lightning's own suggestion divides by the rate rather than by its logarithm, and so prefers the smallest.
    """
    if len(rates) > 2:
        over = torch.tensor(rates[:-1], dtype=torch.float64).log()
        slope = torch.gradient(torch.tensor(losses[:-1], dtype=torch.float64), spacing=(over,))[0]
        if slope.min() < -1e-6:  # not rounding alone
            return float(f"{rates[int(slope.argmin())]:.2g}")
    raise InputError("find_lr", "yes", "found no rate at which the loss falls; give --learning-rate")
