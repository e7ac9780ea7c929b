"""How far a student's outputs are from its teacher's: one rule for each output, and a loss of the user's own before it.

    classes   [N, C], C > 1, and maps that have labels:  T² KL(softmax(teacher / T) || softmax(student / T))
    values    all others:  mean over channels c of E (student_c - teacher_c)² / Var(teacher_c)

Source of the first: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531,
section 2: T² keeps the gradient's size when T changes. The second is 1 - R², so that outputs in any unit weigh alike.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.conversion.batches import describe
from separable.conversion.distillation.history import Measured
from separable.conversion.distillation.variance import channel_variance
from separable.errors import InputError

Pair = Callable[[Any, Any], Tensor]  # (what the student gives, what the teacher gives) -> a loss
Loss = Pair | Mapping[str, Pair | str | None]

ONLY = "output"  # the name of an output that is a lone tensor


def softened_divergence(given: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(target / T) || softmax(given / T)), the mean over all but the class dimension, the second."""
    ours = (given / temperature).log_softmax(1)
    theirs = (target / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean()


def by_name(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each floating-point tensor of an output, however nested: "output", or "boxes", "0", "maps.1"."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield name or ONLY, output
        return
    if isinstance(output, Mapping):
        parts = list(output.items())
    elif isinstance(output, (tuple, list)):
        parts = [*zip(getattr(output, "_fields", range(len(output))), output, strict=True)]
    elif is_dataclass(output):
        parts = [(entry.name, getattr(output, entry.name)) for entry in fields(output)]
    else:
        return
    for key, part in parts:
        yield from by_name(part, f"{name}.{key}" if name else str(key))


@dataclass
class Rule:
    """Of one output."""

    kind: str  # "classes", "values" or "own"
    own: Pair | None = None
    is_of_classes: bool = False  # along the second dimension, whatever the loss
    dim: int = 1  # of channels
    variance: Tensor | None = None  # of the teacher's values, in the shape of one example's channels
    are_probabilities: bool = False  # whose logarithms are logits

    def logits(self, tensor: Tensor) -> Tensor:
        return tensor.clamp(min=1e-8).log() if self.are_probabilities else tensor

    def distance(self, given: Tensor, target: Tensor, temperature: float) -> Tensor:
        if self.own is not None:
            return self.own(given, target)
        if self.kind == "classes":
            return softened_divergence(self.logits(given), self.logits(target), temperature)
        return self.error(given, target)

    def error(self, given: Tensor, target: Tensor) -> Tensor:
        """The share of the teacher's variance that the student misses."""
        assert self.variance is not None
        return ((given - target).square() / self.variance).mean()


class Objective:
    """The rules for all outputs, made from what the teacher gives for some examples."""

    def __init__(self, loss: Loss | None, temperature: float, label_weight: float):
        self.loss, self.temperature, self.label_weight = loss, temperature, label_weight
        self.whole = loss if callable(loss) else None
        self.rules: dict[str, Rule] = {}

    @property
    def names(self) -> list[str]:
        """Of the outputs that have a loss."""
        return [ONLY] if self.whole is not None else list(self.rules)

    def look(self, outputs: list[Any], labels: list[Any]) -> None:
        """Choose a rule for each output: of several batches what the teacher gives, and their labels."""
        named = [dict(by_name(output)) for output in outputs]
        if not named[0]:
            raise InputError("teacher", describe(outputs[0]), "must give floating-point tensors")
        asked: Mapping[str, Any] = self.loss if isinstance(self.loss, Mapping) else {}
        for name in asked:
            if name not in named[0]:
                raise InputError("loss", name, f"names no output; the teacher gives {', '.join(named[0])}")
        for name, first in named[0].items():
            have_labels = any(_belong(one, name, first) for one in labels)
            rule = _rule(name, [one[name] for one in named if name in one], have_labels, asked.get(name, ""))
            if rule is not None:
                self.rules[name] = rule
        if not self.rules and self.whole is None:
            raise InputError("loss", "none for any output", "must leave an output to match")

    def size(self, outputs: list[Any]) -> float:
        """The loss of a student that gives the teacher's mean whatever it is shown: 1 for each output of values."""
        if self.whole is not None:
            return 1.0
        total = 0.0
        for name, rule in self.rules.items():
            seen = torch.cat([dict(by_name(output))[name] for output in outputs])
            total += float(_scalar(rule.distance(seen.mean(0, keepdim=True).expand_as(seen), seen, self.temperature)))
        return total if 0 < total < math.inf else 1.0

    def pairs(self, given: Any, target: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Student's and teacher's tensor of each output that has a rule."""
        ours, theirs = dict(by_name(given)), dict(by_name(target))
        for name in self.rules:
            if name not in theirs or name not in ours or ours[name].shape != theirs[name].shape:
                wanted = describe(theirs.get(name))
                place = "" if name == ONLY else f" for {name}"
                got = ours.get(name, given)
                raise InputError("student", describe(got), f"must give what the teacher gives{place}, a {wanted}")
        return {name: (ours[name], theirs[name]) for name in self.rules}

    def of(self, given: Any, target: Any, labels: Any) -> tuple[Tensor, bool]:
        """The loss of a batch to train on, and whether it held labels."""
        pairs = self.pairs(given, target)
        soft = self._soft(given, target, pairs, self.temperature)
        total = sum(soft.values(), torch.zeros(()))
        if not self.label_weight:
            return total, False
        hard = [
            F.cross_entropy(self.rules[name].logits(pairs[name][0]), wanted.masked_fill(wanted < 0, -100))
            for name, wanted in self.labels(pairs, labels, "train").items()
        ]
        return (1 - self.label_weight) * total + self.label_weight * sum(hard, torch.zeros(())), bool(hard)

    def _soft(self, given: Any, target: Any, pairs: dict, temperature: float) -> dict[str, Tensor]:
        if self.whole is not None:
            return {ONLY: _scalar(self.whole(given, target))}
        return {name: _scalar(self.rules[name].distance(a, b, temperature)) for name, (a, b) in pairs.items()}

    def labels(self, pairs: dict[str, tuple[Tensor, Tensor]], labels: Any, source: str) -> dict[str, Tensor]:
        """Class numbers [N, ...] of each output that has some in this batch, negative where an example has none."""
        found = {}
        for name, (given, _) in pairs.items():
            if self.rules[name].is_of_classes:
                one = labels.get(name) if isinstance(labels, Mapping) else labels
                if isinstance(one, Tensor) and (isinstance(labels, Mapping) or self._takes_labels(name, one, given)):
                    checked = _checked(one, given, source)
                    if (checked >= 0).any():
                        found[name] = checked
        return found

    def _takes_labels(self, name: str, labels: Tensor, given: Tensor) -> bool:
        """A lone tensor of labels is of the only output of classes, or of the first that it fits."""
        names = [other for other, rule in self.rules.items() if rule.is_of_classes]
        return len(names) == 1 or (names[0] == name and labels.dim() == given.dim() - 1)

    @torch.no_grad()
    def measure(self, given: Any, target: Any, labels: Any, examples: int, into: Measured) -> None:
        """Add a batch of validation."""
        pairs = self.pairs(given, target)
        into.examples += examples
        for name, loss in self._soft(given, target, pairs, 1.0).items():
            into.losses[name] = into.losses.get(name, 0.0) + float(loss) * examples
        for name, (ours, theirs) in pairs.items():
            if self.rules[name].is_of_classes:
                into.agreed += float((ours.argmax(1) == theirs.argmax(1)).double().mean()) * examples
                into.decided += examples
            elif self.rules[name].kind == "values":
                into.error += float(self.rules[name].error(ours, theirs)) * examples
                into.valued += examples
        for name, wanted in self.labels(pairs, labels, "validation").items():
            into.labelled += float((wanted >= 0).sum())
            into.right += float((pairs[name][0].argmax(1) == wanted).sum())  # which is never negative


def _rule(name: str, seen: list[Tensor], have_labels: bool, asked: Any) -> Rule | None:
    first = seen[0]
    if asked is None:
        return None
    if callable(asked):
        return Rule("own", asked, is_of_classes=have_labels)
    if asked not in ("", "classes", "values"):
        raise InputError("loss", f"{asked} for {name}", 'must be a function, "classes", "values" or None')
    if asked == "classes" and (first.dim() < 2 or first.shape[1] < 2):
        raise InputError("loss", f"classes for {name}, a {describe(first)}", "needs logits [N, classes, ...]")
    if asked == "classes" or (not asked and (have_labels or (first.dim() == 2 and first.shape[1] > 1))):
        sums = first.sum(1)
        are = bool((first >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
        return Rule("classes", is_of_classes=True, are_probabilities=are)
    if first.dim() < 2:
        seen = [one.reshape(-1, 1) for one in seen]
        return Rule("values", variance=channel_variance(seen, 1).reshape(()))
    # [N, C, H, W] and [N, H, W, C]: an output has fewer channels than places
    dim = first.dim() - 1 if first.shape[-1] < first.shape[1] else 1
    return Rule("values", dim=dim, variance=channel_variance(seen, dim))


def _belong(labels: Any, name: str, output: Tensor) -> bool:
    """Whether these labels make a map one of classes: whole numbers, one for each place."""
    one = labels.get(name) if isinstance(labels, Mapping) else labels
    if not isinstance(one, Tensor) or one.is_floating_point() or one.is_complex() or output.dim() < 2:
        return False
    return list(one.shape[1:]) == list(output.shape[2:]) and output.shape[1] > 1


def _checked(labels: Tensor, given: Tensor, source: str) -> Tensor:
    shape, classes = [len(given), *given.shape[2:]], given.shape[1]
    if list(labels.shape) != shape or labels.is_floating_point() or labels.is_complex():
        raise InputError(source, f"labels, a {describe(labels)}", f"labels must be whole numbers of shape {shape}")
    if labels.numel() and int(labels.max()) >= classes:
        raise InputError(source, f"label {int(labels.max())}", f"labels must be less than {classes}, the classes given")
    return labels.long()


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError("loss", describe(loss), "must give one number, as a tensor")
    return loss.reshape(())
