"""Fine-tune a student against its teacher: match the teacher's softened outputs, and the labels where there are any.

loss = (1 - label_weight) * T² * KL(softmax(teacher / T) || softmax(student / T)) + label_weight * cross_entropy
Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2: the
factor T² keeps the gradient's size when T changes. Schedule: Loshchilov and Hutter 2016, arXiv:1608.03983, one cosine.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from separable.conversion.batches import BATCH_EXAMPLES, Data, check_values, describe, first_of
from separable.conversion.survey import run
from separable.cost.count import uncompiled
from separable.errors import InputError
from separable.progress import say, track

_WARM_UP = 0.05  # of all steps, linear
_GRADIENT_NORM = 5.0
_DECAY = 1e-4


@dataclass
class Epoch:
    """One pass: mean training loss, none before the first; the other numbers are of validation, shares from 0 to 1."""

    epoch: int
    loss: float | None
    validation_loss: float | None = None
    agreement: float | None = None  # the share of examples on which the student decides as the teacher does
    accuracy: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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
) -> tuple[nn.Module, list[Epoch]]:
    """Train `student`, in place, to give what `teacher` gives; the best epoch on validation is what remains.

    Args:
        student: gives logits [N, classes, ...]; parameters that require no gradient stay. It comes back in its mode.
        teacher: gives logits of the same shape. It is run in eval mode without gradients and otherwise left alone.
        train: a tensor [N, ...], shuffled here every epoch, or an iterable of batches that can be walked each epoch,
            each a tensor or (inputs, labels).
        validation: the same; the network before training counts as epoch 0, so that the result is never worse there.
            Accuracy decides where there are labels, then the loss. Without validation the last epoch remains.
            A negative label stands for none.
        epochs: passes over `train`.
        learning_rate: AdamW's, at its highest.
        temperature: T above.
        label_weight: 0 ignores labels; above 0 `train` must hold them.
        freeze_norms: keep batch-norm statistics as they are, for batches too small to estimate them.

    Returns:
        The student and its history, epoch 0 first.

    Raises:
        InputError: data without examples or that the networks cannot read, NaN in it, outputs that do not match, labels
            that are missing or no class, or a loss that is not finite.

    The order of examples, and dropout, come of torch's global random numbers: `torch.manual_seed` repeats a run.

    >>> x = torch.randn(64, 3, 8, 8)
    >>> teacher, student = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)) for _ in range(2))
    >>> _, history = distill(student, teacher, x, x, epochs=2)
    >>> history[-1].validation_loss < history[0].validation_loss
    True
    """
    _check(student, teacher, epochs, learning_rate, temperature, label_weight)
    given, student, teacher = student, uncompiled(student), uncompiled(teacher)
    course = _Course(student, teacher, temperature, label_weight)
    modes = {module: module.training for network in (student, teacher) for module in network.modules()}
    teacher.eval()
    try:
        return given, _train(course, train, validation, epochs, learning_rate, freeze_norms)
    finally:
        for module, training in modes.items():
            module.training = training


@dataclass
class _Course:
    student: nn.Module
    teacher: nn.Module
    temperature: float
    label_weight: float

    def outputs(self, batch: Any, source: str) -> tuple[Tensor, Tensor]:
        """Logits of student and teacher for a batch of `source`, "train" or "validation"."""
        place = next(self.student.parameters())
        inputs = first_of(batch)
        inputs = inputs.to(place.device, place.dtype if inputs.is_floating_point() else None)
        if not torch.isfinite(inputs).all():
            raise InputError(source, describe(inputs), "holds NaN or infinite values")
        with torch.no_grad():
            target = run(self.teacher, inputs, source, "the teacher")
        given = run(self.student, inputs, source, "the student")
        if not isinstance(given, Tensor) or not isinstance(target, Tensor) or given.shape != target.shape:
            raise InputError("student", describe(given), f"must give what the teacher gives, a {describe(target)}")
        if given.dim() < 2:
            raise InputError("student", describe(given), "must give logits [N, classes, ...]")
        if not torch.isfinite(target).all():
            raise InputError("teacher", type(self.teacher).__name__, f"gives NaN or infinite values for {source}")
        return given, target

    def loss(self, batch: Any) -> Tensor:
        """Of a batch to train on."""
        given, target = self.outputs(batch, "train")
        soft = softened_divergence(given, target, self.temperature)
        if not self.label_weight:
            return soft
        labels = _labels(batch, given, "train")
        if labels is None:
            raise InputError("label_weight", self.label_weight, "needs batches of (inputs, labels), some not negative")
        hard = F.cross_entropy(given, labels.masked_fill(labels < 0, -100), ignore_index=-100)
        return (1 - self.label_weight) * soft + self.label_weight * hard


def _labels(batch: Any, given: Tensor, source: str) -> Tensor | None:
    """Class numbers [N, ...] of a batch, negative where there is none; None where the batch has none at all."""
    if not (isinstance(batch, (tuple, list)) and len(batch) > 1 and isinstance(batch[1], Tensor)):
        return None
    labels, classes = batch[1].to(given.device), given.shape[1]
    shape = [len(given), *given.shape[2:]]
    if list(labels.shape) != shape or labels.is_floating_point() or labels.is_complex():
        raise InputError(source, f"labels, a {describe(labels)}", f"labels must be whole numbers of shape {shape}")
    if labels.numel() and int(labels.max()) >= classes:
        raise InputError(source, f"label {int(labels.max())}", f"labels must be less than {classes}, the classes given")
    return labels.long() if (labels >= 0).any() else None


def softened_divergence(given: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(target / T) || softmax(given / T)), the mean over all but the class dimension, the second."""
    ours = (given / temperature).log_softmax(1)
    theirs = (target / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean()


def _check(student: Any, teacher: Any, epochs: Any, learning_rate: Any, temperature: Any, label_weight: Any) -> None:
    check_values("student", student)
    check_values("teacher", teacher)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InputError("epochs", epochs, "must be a whole number of at least 1")
    for name, value in (("learning_rate", learning_rate), ("temperature", temperature)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InputError(name, value, "must be a positive number")
    if not isinstance(label_weight, (int, float)) or not 0 <= label_weight <= 1:
        raise InputError("label_weight", label_weight, "must be a number from 0 to 1")
    if not any(p.requires_grad for p in student.parameters()):
        raise InputError("student", type(student).__name__, "has no parameter that requires a gradient")


def _train(course: _Course, train, validation, epochs: int, learning_rate: float, freeze_norms: bool) -> list[Epoch]:
    student = course.student
    batches = list(_epoch_of(train)) if not _can_be_walked_again(train) else train
    validation = validation if validation is None or _can_be_walked_again(validation) else list(_epoch_of(validation))
    steps = epochs * _length(batches)
    optimizer = torch.optim.AdamW(_parameter_groups(student), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, steps))
    history = [_evaluate(course, validation, Epoch(0, None))] if validation is not None else []
    best = copy.deepcopy(student.state_dict()) if history else None
    for epoch in range(1, epochs + 1):
        _set_training(student, freeze_norms)
        total, examples = 0.0, 0
        for batch in track(_epoch_of(batches), f"distilling, epoch {epoch} of {epochs}", _length(batches)):
            loss = course.loss(batch)
            if not torch.isfinite(loss):
                if epoch == 1 and not examples:
                    raise InputError("student", type(student).__name__, "has a loss that is not finite before any step")
                raise InputError("learning_rate", learning_rate, f"the loss is not finite in epoch {epoch}; lower it")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), _GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            total, examples = total + float(loss.detach()) * len(first_of(batch)), examples + len(first_of(batch))
        if not examples:
            raise InputError("train", describe(train), "holds no examples")
        history.append(_evaluate(course, validation, Epoch(epoch, total / examples)))
        if best is not None and _score(history[-1]) >= max(_score(past) for past in history[:-1]):
            best = copy.deepcopy(student.state_dict())
    if best is not None:
        student.load_state_dict(best)
    return history


@torch.no_grad()
def _evaluate(course: _Course, validation: Data | None, epoch: Epoch) -> Epoch:
    if validation is None:
        return epoch
    course.student.eval()
    loss, agree, examples, right, labelled = 0.0, 0.0, 0, 0, 0
    for batch in _epoch_of(validation, shuffle=False):
        given, target = course.outputs(batch, "validation")
        labels = _labels(batch, given, "validation")
        loss += float(softened_divergence(given, target, 1.0)) * len(given)
        agree += float((given.argmax(1) == target.argmax(1)).double().mean()) * len(given)
        if labels is not None:
            labelled += int((labels >= 0).sum())
            right += int((given.argmax(1) == labels).sum())  # which is never negative
        examples += len(given)
    if not examples:
        raise InputError("validation", describe(validation), "holds no examples")
    epoch.validation_loss, epoch.agreement = loss / examples, agree / examples
    epoch.accuracy = right / labelled if labelled else None
    said = f"agrees with the teacher on {epoch.agreement:.2%}"
    said += "" if epoch.accuracy is None else f", accuracy {epoch.accuracy:.2%}"
    say(f"epoch {epoch.epoch}: {said}")
    return epoch


def _score(epoch: Epoch) -> tuple[float, float]:
    """What the best epoch is chosen by: accuracy where known, then nearness to the teacher."""
    loss = epoch.validation_loss if epoch.validation_loss is not None else math.inf
    return (epoch.accuracy if epoch.accuracy is not None else 0.0, -loss)


def _parameter_groups(student: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices and filters alone; biases and norms are left to the data."""
    trained = [p for p in student.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": _DECAY},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _factor(step: int, steps: int) -> float:
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _set_training(student: nn.Module, freeze_norms: bool) -> None:
    student.train()
    for module in student.modules():
        frozen = isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters())
        if isinstance(module, _BatchNorm) and (freeze_norms or (frozen and module.affine)):
            module.eval()


def _can_be_walked_again(data: Any) -> bool:
    return isinstance(data, Tensor) or (isinstance(data, Iterable) and iter(data) is not data)


def _length(data: Any) -> int:
    if isinstance(data, Tensor):
        return math.ceil(len(data) / BATCH_EXAMPLES)
    return len(data) if hasattr(data, "__len__") else sum(1 for _ in data)


def _epoch_of(data: Any, shuffle: bool = True) -> Iterable[Any]:
    """The batches of one epoch; a tensor is shuffled and cut here, anything else comes as its owner gives it."""
    if isinstance(data, Tensor):
        if not len(data):
            raise InputError("train", describe(data), "holds no examples")
        # even parts, so that no batch norm meets a single example
        return (data[torch.randperm(len(data))] if shuffle else data).tensor_split(_length(data))
    if isinstance(data, (str, bytes, dict)) or not isinstance(data, Iterable):
        raise InputError("train", describe(data), "must be a tensor [N, ...] or an iterable of batches")
    return data
