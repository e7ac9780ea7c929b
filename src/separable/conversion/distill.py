"""Fine-tune a student against its teacher: match what the teacher gives, and the labels where there are any.

    loss = (1 - label_weight) * sum over outputs of distance(student, teacher) + label_weight * cross_entropy

Its parts stand in `distillation/`: `loss` has the distances, `features` what is matched inside, `steps` how far each
step goes, `state` what a folder keeps, `processes` what several processes share; `run` is the loop.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from separable.conversion.batches import Data, check_values
from separable.conversion.distillation.data import Source
from separable.conversion.distillation.history import Epoch
from separable.conversion.distillation.loss import Loss, softened_divergence
from separable.conversion.distillation.networks import Pair, modes_kept, twin
from separable.conversion.distillation.processes import joined
from separable.conversion.distillation.run import Run, Settings
from separable.cost.count import uncompiled
from separable.errors import InputError
from separable.functional.measure import reproducible

__all__ = ["Epoch", "distill", "softened_divergence"]


def distill(
    student: nn.Module,
    teacher: nn.Module,
    train: Data,
    validation: Data | None = None,
    epochs: int = 10,
    *,
    learning_rate: float = 1e-3,
    temperature: float = 4.0,
    label_weight: float = 0.0,
    freeze_norms: bool = False,
    loss: Loss | None = None,
    features: bool | Sequence[str] = True,
    feature_weight: float = 1.0,
    minutes: float | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> tuple[nn.Module, list[Epoch]]:
    """Train `student`, in place, to give what `teacher` gives; the best epoch on validation is what remains.

    Args:
        student: gives what the teacher gives: a tensor, or a dict, tuple or list of tensors, however nested.
            Parameters that require no gradient stay. It comes back in its mode.
        teacher: it is run in eval mode without gradients and otherwise left alone.
        train: a tensor [N, ...], shuffled here every epoch, or an iterable of batches that can be walked each epoch,
            each the inputs or (inputs, labels). Inputs are a tensor, a tuple of what the network takes, or a dict of
            what it takes by name. In a dict that is a whole batch, "labels" are the labels. A negative label stands for
            none; batches with and without labels may be mixed.
        validation: the same; the network before training counts as epoch 0, so that the result is never worse there.
            Accuracy decides where there are labels, then the loss. Without validation the last epoch remains.
        epochs: passes over `train`.
        learning_rate: at its highest, of a tensor whose weights have a root mean square of 0.1; that of each tensor is
            proportional to its own. The default moves a weight by at most a hundredth of its tensor's size a step.
        temperature: T of outputs that are classes.
        label_weight: 0 ignores labels; above 0 `train` must hold some.
        freeze_norms: keep batch-norm statistics as they are, for batches too small to estimate them.
        loss: instead of the rule: for each named output a function of (student's, teacher's), "classes", "values", or
            None to leave it out; or one function of both networks' whole outputs. A lone tensor is named "output", the
            parts of others "boxes", "0", "maps.1". Without it, [N, classes] and maps with labels are matched as
            classes, all others as values.
        features: match inside as well: the blocks that hold replaced layers; or names of modules of both, or False.
        feature_weight: of the features in the loss; at 1 they weigh as much as the outputs.
        minutes: a time limit, validation included; the schedule then ends in time, if the epochs do not end before.
        patience: stop after so many epochs without a better one on validation.
        checkpoint: a folder for checkpoints, at least every two minutes, and for TensorBoard's curves.
        resume: continue the run in `checkpoint`, to the numbers that it would have reached; begin it if there is none.

    Returns:
        The student and its history, epoch 0 first.

    Raises:
        InputError: data without examples or that the networks cannot read, NaN in it, outputs that do not match, labels
            that are missing or no class, a loss that is not finite, or a folder that belongs to another run. The
            student then holds its best epoch.
        KeyboardInterrupt: Ctrl-C. The student then holds its best epoch; without validation, what it has learnt.

    The order of examples, and dropout, come of torch's global random numbers: `torch.manual_seed` repeats a run.
    Under torchrun, or where torch.distributed runs, all processes train one student; see `distillation.processes`.

    >>> import torch
    >>> x = torch.randn(64, 3, 8, 8)
    >>> teacher, student = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)) for _ in range(2))
    >>> _, history = distill(student, teacher, x, x, epochs=2)
    >>> history[-1].validation_loss < history[0].validation_loss
    True
    """
    folder = None if checkpoint is None else Path(checkpoint)
    settings = Settings(
        epochs,
        learning_rate,
        temperature,
        label_weight,
        freeze_norms,
        loss,
        features,
        feature_weight,
        minutes,
        patience,
        folder,
        resume,
    )
    _check(student, teacher, settings, validation)
    given, student, teacher = student, uncompiled(student), uncompiled(teacher)
    sources = Source(train, "train"), None if validation is None else Source(validation, "validation")
    with joined() as processes, processes.quiet(), reproducible(), modes_kept(student, teacher):
        teacher.eval()
        with twin(student) as faster:
            return given, Run(Pair(student, teacher, faster), *sources, settings, processes)()


def _check(student: Any, teacher: Any, settings: Settings, validation: Any) -> None:
    check_values("student", student)
    check_values("teacher", teacher)
    for name, least in (("epochs", 1), ("patience", 1)):
        value = getattr(settings, name)
        if value is None and name == "patience":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(name, value, f"must be a whole number of at least {least}")
    for name in ("learning_rate", "temperature", "minutes"):
        value = getattr(settings, name)
        if value is None and name == "minutes":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InputError(name, value, "must be a positive number")
    if not isinstance(settings.label_weight, (int, float)) or not 0 <= settings.label_weight <= 1:
        raise InputError("label_weight", settings.label_weight, "must be a number from 0 to 1")
    weight = settings.feature_weight
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise InputError("feature_weight", weight, "must be a number of at least 0")
    names = settings.features
    if isinstance(names, str) or not isinstance(names, (bool, Sequence)):
        raise InputError("features", names, "must be True, False or a list of names of modules")
    if settings.loss is not None and not (callable(settings.loss) or isinstance(settings.loss, dict)):
        raise InputError("loss", type(settings.loss).__name__, "must be a function, or a dict of them by output")
    if settings.patience is not None and validation is None:
        raise InputError("patience", settings.patience, "needs validation data, on which the best epoch is known")
    if not any(p.requires_grad for p in student.parameters()):
        raise InputError("student", type(student).__name__, "has no parameter that requires a gradient")
