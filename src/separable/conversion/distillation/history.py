"""What each epoch measured, and which was best."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from separable.conversion.distillation.processes import Processes


@dataclass
class Epoch:
    """One pass: mean training loss, none before the first; the other numbers are of validation, shares from 0 to 1."""

    epoch: int
    loss: float | None
    validation_loss: float | None = None
    agreement: float | None = None  # the share of examples on which the student decides as the teacher does
    accuracy: float | None = None
    error: float | None = None  # of outputs that are values: the share of the teacher's variance that is missed
    outputs: dict[str, float] = field(default_factory=dict)  # the validation loss of each, where there are several
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def numbers(self) -> dict[str, float | None]:
        """For curves."""
        names = ("loss", "validation_loss", "agreement", "accuracy", "error")
        parts = {f"epoch/validation_loss of {name}": value for name, value in self.outputs.items()}
        return {**{f"epoch/{name}": getattr(self, name) for name in names}, **parts}

    def score(self) -> tuple[float, float]:
        """What the best is chosen by: accuracy where it is known, then nearness to the teacher; NaN is worst."""
        loss = self.validation_loss
        nearness = -math.inf if loss is None or math.isnan(loss) else -loss
        return (0.0 if self.accuracy is None else self.accuracy, nearness)

    def describe(self, epochs: int) -> str:
        """One line."""
        said = [] if self.loss is None else [f"loss {self.loss:.4g}"]
        said += [] if self.agreement is None else [f"agrees with the teacher on {self.agreement:.2%}"]
        said += [] if self.error is None else [f"misses {self.error:.2%} of the teacher's variance"]
        said += [] if self.accuracy is None else [f"accuracy {self.accuracy:.2%}"]
        if self.validation_loss is not None and self.agreement is None and self.error is None:
            said.append(f"validation loss {self.validation_loss:.4g}")
        return f"epoch {self.epoch} of {epochs}: {', '.join([*said, f'{self.seconds:.0f} s'])}"


@dataclass
class Measured:
    """Sums over the examples of validation, to be added up over processes."""

    examples: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    agreed: float = 0.0
    decided: float = 0.0  # examples times outputs of classes
    error: float = 0.0
    valued: float = 0.0  # examples times outputs of values
    right: float = 0.0
    labelled: float = 0.0

    def add_up(self, processes: Processes, names: list[str]) -> None:
        """With those of the other processes."""
        plain = ("examples", "agreed", "decided", "error", "valued", "right", "labelled")
        losses = [self.losses.get(name, 0.0) for name in names]
        summed = processes.sum([*(float(getattr(self, name)) for name in plain), *losses])
        for name, value in zip(plain, summed, strict=False):
            setattr(self, name, value)
        self.losses = dict(zip(names, summed[len(plain) :], strict=True))

    def into(self, epoch: Epoch) -> None:
        """Means and shares, as an epoch has them."""
        losses = {name: loss / self.examples for name, loss in self.losses.items()}
        epoch.validation_loss, epoch.outputs = sum(losses.values()), losses if len(losses) > 1 else {}
        epoch.agreement = self.agreed / self.decided if self.decided else None
        epoch.error = self.error / self.valued if self.valued else None
        epoch.accuracy = self.right / self.labelled if self.labelled else None


class History:
    """The epochs of a run in their order. Without validation the last counts as the best."""

    def __init__(self, is_validated: bool):
        self.is_validated = is_validated
        self.epochs: list[Epoch] = []

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def add(self, epoch: Epoch) -> bool:
        """Whether none was better."""
        self.epochs.append(epoch)
        return self.best() is epoch

    def best(self) -> Epoch | None:
        """Of equals the last."""
        if not self.epochs or not self.is_validated:
            return self.epochs[-1] if self.epochs else None
        return max(reversed(self.epochs), key=Epoch.score)

    def epochs_since_best(self) -> int:
        best = self.best()
        return 0 if best is None else self.epochs[-1].epoch - best.epoch

    def held(self) -> str:
        """What a student holds when its training is broken off."""
        best = self.best()
        if best is None or not self.is_validated:
            return "what it has learnt so far"
        return f"the best so far, of epoch {best.epoch}"
