"""Distillation as a part of `separable convert`: which images, in which order, and how long."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from separable import conversion
from separable.commands.budget import as_typed
from separable.commands.unfinished import Unfinished
from separable.data import ImageSet
from separable.errors import InputError

_VALIDATION_SHARE = 0.1  # of the training images, held out to choose the epoch
_BATCH_SIZE = 128


def check(options: Any) -> None:
    """Options of a distillation that was not asked for, or that make none."""
    given = {"--distill-minutes": options.distill_minutes, "--patience": options.patience}
    for name, value in given.items():
        if value is not None and not options.distill:
            raise InputError(name, value, "goes with --distill EPOCHS")
    minutes = options.distill_minutes
    if minutes is not None and not 0 < minutes < float("inf"):
        raise InputError("--distill-minutes", minutes, "must be a positive number")


def distill(student: nn.Module, teacher: nn.Module, images: ImageSet, options: Any, unfinished: Unfinished) -> None:
    """Fine-tune in place against the dense network; the epoch is chosen on training images held out for that.

    Raises:
        KeyboardInterrupt: the student then holds its best epoch.
    """
    readable = images.readable()
    order = torch.randperm(len(readable), generator=torch.Generator().manual_seed(options.seed)).tolist()
    held_out = max(1, int(_VALIDATION_SHARE * len(order)))
    validation, train = ([readable[i] for i in part] for part in (order[:held_out], order[held_out:]))
    if not train:
        raise InputError(
            "--distill", options.distill, f"needs at least two readable images, and there are {len(order)}"
        )
    torch.manual_seed(options.seed)
    # a last batch of one image would give batch norm nothing to estimate from
    shuffled = DataLoader(Subset(images, train), _BATCH_SIZE, shuffle=True, drop_last=len(train) > _BATCH_SIZE)
    held = DataLoader(Subset(images, validation), _BATCH_SIZE)
    with as_typed({"minutes": ("--distill-minutes", options.distill_minutes)}):
        conversion.distill(
            student, teacher, shuffled, held, epochs=options.distill, minutes=options.distill_minutes,
            patience=options.patience, checkpoint=unfinished.distillation, resume=options.resume,
        )  # fmt: skip
