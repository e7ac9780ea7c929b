"""Both networks over the data, once: what each answers for each example, and how far their outputs are apart."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from separable.conversion.batches import describe, run
from separable.conversion.who_pays.examples import Batch, batches, fitting
from separable.conversion.who_pays.kept import Highest, Sample
from separable.conversion.who_pays.outputs import best, check_same, distances, logits_of, relative, tensors_of
from separable.errors import InputError
from separable.inputs import Inputs
from separable.progress import track

ACCURACY, AGREEMENT, ERROR = "accuracy", "agreement", "error"
SHOWN = 24  # examples of each kind whose inputs are kept for a page


@dataclass
class Answers:
    """One row an example in every tensor, in the order of the data.

    number: the example's place in the data. label: -1 where there are none.
    distance: the mean square of (converted - dense), [N, outputs]; size: that of the dense network's outputs.
    dense, converted: answers, with their probabilities; -1 and 0 where outputs are no class logits.
    """

    measure: str
    number: Tensor
    label: Tensor
    distance: Tensor
    size: Tensor
    dense: Tensor
    dense_probability: Tensor
    converted: Tensor
    converted_probability: Tensor
    examples: int  # read, with those that were left out because they have no label
    files: list[str] | None
    sample: Sample
    shown: dict[int, Inputs]

    @property
    def target(self) -> Tensor:
        """The answers asked for: the labels, or the dense network's where there are none."""
        return self.label if self.measure == ACCURACY else self.dense

    @property
    def scale(self) -> Tensor:
        """The mean square [outputs] over all examples: by its own, a blank example would have an error without end."""
        return self.size.mean(0)

    @property
    def error(self) -> Tensor:
        """Of each example: the difference as a share of what the dense network gives."""
        return relative(self.distance, self.scale)


@torch.no_grad()
def compare(dense: nn.Module, converted: nn.Module, data: Any, answers: str, sample: Sample) -> Answers:
    """One pass of both networks, which are in eval mode already.

    Raises:
        InputError: data that they cannot read, outputs that do not match or are not finite, labels that are no classes.
    """
    course = _Course(answers, sample)
    for batch in track(batches(data), "comparing with the dense network"):
        chosen, numbers = course.chosen(batch)
        if len(numbers):
            inputs = fitting(dense, chosen.inputs)
            given = run(converted, inputs, who="the converted network")
            course.add(chosen, numbers, run(dense, inputs, who="the dense network"), given)
    return course.end()


class _Course:
    """What one pass gathers. The first batch decides whether labels count and what is measured."""

    def __init__(self, asked: str, sample: Sample):
        self.asked, self.sample, self.measure = asked, sample, ""
        self.labelled: bool | None = None
        self.examples = 0
        self.rows: list[tuple[Tensor, ...]] = []
        self.files: list[str] | None = None
        self.probabilities = True  # all class outputs so far lie from 0 to 1
        self.shown = {kind: Highest(SHOWN) for kind in ("lost", "won", "other", "far")}

    def chosen(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The examples of a batch that count, those with a label where any has one, and their numbers."""
        labels, first = batch.class_labels(), self.labelled is None
        if first:
            self.labelled = labels is not None
        elif labels is not None and not self.labelled:
            rule = "none in the first batch and some later; label an example of the first too, or give inputs alone"
            raise InputError("data", "labels", rule)
        if not first and (self.files is None) != (batch.files is None):
            raise InputError("data", "files", "must be given for all batches or for none")
        if batch.files is not None:
            self.files = (self.files or []) + batch.files
        numbers = torch.arange(self.examples, self.examples + len(batch.inputs))
        self.examples += len(batch.inputs)
        if not self.labelled:
            return batch, numbers
        kept = torch.zeros(len(numbers), dtype=torch.bool) if labels is None else (labels >= 0).cpu()
        return batch.only(kept), numbers[kept]

    def add(self, batch: Batch, numbers: Tensor, dense: Any, converted: Any) -> None:
        n = len(numbers)
        theirs, ours = tensors_of(dense, n, "dense"), tensors_of(converted, n, "converted")
        check_same(theirs, ours)
        logits = None if self.asked == "values" else logits_of(dense, n)
        if not self.measure:
            self.measure = _measure(self.asked, batch, logits)
        label = batch.class_labels() if self.labelled else None
        label = torch.full((n,), -1) if label is None else label.cpu()
        row: tuple[Tensor, ...] = (numbers, label, distances(theirs, ours), distances(theirs))
        if self.measure == ERROR:
            row += (torch.full((n,), -1), torch.zeros(n, 2), torch.full((n,), -1), torch.zeros(n, 2))
        else:
            given = logits_of(converted, n)
            if logits is None or given is None:
                raise InputError(
                    "data", describe(batch.inputs.tensors()[0]), "gives class logits for some batches only"
                )
            _check_labels(label, logits.shape[1])
            self.probabilities &= all(bool(((one >= 0) & (one <= 1)).all()) for one in (logits, given))
            row += (*best(logits), *best(given))
        self.rows.append(row)
        self._keep(batch.inputs, row)

    def _keep(self, inputs: Inputs, row: tuple[Tensor, ...]) -> None:
        """Offer each example to the sample, and to what is shown: the answers that were surest come first."""
        numbers, label, distance, _, dense, dense_sure, converted, sure = row
        target = label if self.measure == ACCURACY else dense
        error = relative(distance, self.rows[0][3].mean(0))
        for i, number in enumerate(numbers.tolist()):
            changed = bool(dense[i] != converted[i])

            def one(i: int = i) -> Inputs:
                return inputs[i : i + 1].map(Tensor.clone)

            self.sample.offer(number, changed, one)
            if self.measure == ERROR:
                self.shown["far"].offer(float(error[i]), number, one)
            elif changed:
                kind = kind_of(int(dense[i]), int(converted[i]), int(target[i]))
                self.shown[kind].offer(float((sure if kind == "won" else dense_sure)[i, 0]), number, one)

    def end(self) -> Answers:
        if not self.rows:
            raise InputError("data", "labels", "no example has a label that is a class number")
        number, label, distance, size, dense, dense_sure, converted, sure = (
            torch.cat(column) for column in zip(*self.rows, strict=True)
        )
        as_given = 1 if self.probabilities else 0
        shown = {n: inputs for kind in self.shown.values() for n, inputs in kind.ranked()}
        return Answers(
            self.measure, number, label, distance, size, dense, dense_sure[:, as_given], converted, sure[:, as_given],
            self.examples, self.files, self.sample, shown,
        )  # fmt: skip


def kind_of(dense: int, converted: int, target: int) -> str:
    """What a changed answer is: lost, won, or other: wrong in both networks."""
    return "lost" if dense == target else "won" if converted == target else "other"


def _measure(asked: str, batch: Batch, logits: Tensor | None) -> str:
    """What the answers of the networks are compared by, told from the first batch."""
    floating = batch.labels is not None and batch.labels.is_floating_point()
    if asked == "classes" and (logits is None or floating):
        raise InputError("answers", asked, "needs one output [N, classes], and labels that are class numbers if any")
    if logits is None or floating:
        return ERROR
    if batch.labels is not None and batch.labels.dim() != 1:
        rule = 'must be class numbers [N]; answers="values" compares outputs without them'
        raise InputError("data", f"labels, a {describe(batch.labels)}", rule)
    return AGREEMENT if batch.class_labels() is None else ACCURACY


def _check_labels(label: Tensor, classes: int) -> None:
    if int(label.max()) >= classes:
        raise InputError(
            "data", f"label {int(label.max())}", f"must be less than {classes}, the classes of the network"
        )
