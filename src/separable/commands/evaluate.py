"""How good a network is: on labelled images, or on data of any task that a recipe trained it for.

Each task's own part is in the file of its name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import Tensor, nn

from separable.commands.network import Network, call, task_of
from separable.commands.result import Result
from separable.data import ImageSet
from separable.errors import InputError, first_line
from separable.inputs import own_copy


@dataclass
class Evaluated:
    """What a task says of a network: plain data, the same as text, and as a section of a page with its facts."""

    part: dict[str, Any]
    text: str
    title: str
    section: Callable[[], Any]
    headline: list[tuple[str, str]]


@dataclass
class Accuracy:
    """Counts over labelled examples; top5 only where there are more than five classes."""

    examples: int = 0
    top1_right: int = 0
    top5_right: int = 0
    classes: int = 0

    @property
    def top1(self) -> float:
        return self.top1_right / self.examples

    @property
    def top5(self) -> float | None:
        return self.top5_right / self.examples if self.classes > 5 else None


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Accuracy:
    """Top-1 and top-5 of a classifier over batches (inputs, labels); the model's mode is restored."""
    was_training = model.training
    model.eval()
    counts = Accuracy()
    try:
        with torch.inference_mode():
            for inputs, labels in batches:
                logits = logits_of(model, inputs, labels)  # [N, classes]
                best = logits.topk(min(5, logits.shape[1]), dim=1).indices
                right = best == labels[:, None]
                counts.top1_right += int(right[:, 0].sum())
                counts.top5_right += int(right.sum())
                counts.examples += len(labels)
                counts.classes = logits.shape[1]
    finally:
        model.train(was_training)
    if not counts.examples:
        raise InputError("data", "empty", "holds no labelled example to measure on")
    return counts


def logits_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """The model's output [N, classes] for a batch with its labels [N], which it must have a class for."""
    logits = forward(model, inputs)
    if logits.dim() != 2 or len(logits) != len(labels) or int(labels.max()) >= logits.shape[1]:
        rule = f"must be [{len(labels)}, classes], with a class for each label, up to {int(labels.max())}"
        raise InputError("network", f"output of shape {list(logits.shape)}", rule)
    if not logits.isfinite().all():
        raise InputError("network", "output", "holds NaN or infinity; its accuracy would mean nothing")
    return logits


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's output for a batch in the model's own type; a batch that does not fit is the user's to know of."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), inputs.dtype)
    try:
        logits = model(own_copy(inputs.to(dtype)))
    except (RuntimeError, TypeError, ValueError) as error:
        shown = f"batch of shape {list(inputs.shape)}"
        raise InputError("data", shown, f"{type(model).__name__} refuses it: {first_line(error)}") from error
    if not isinstance(logits, Tensor):
        raise InputError("network", type(logits).__name__, "must give one tensor [N, classes]")
    return logits.float()


def check_classes(network: Network, test: ImageSet, outputs: int) -> None:
    """Folders are numbered by their sorted names: with another number of classes the labels mean something else."""
    if not network.classes and test.classes and len(test.classes) != outputs:
        rule = (
            f"has {len(test.classes)} classes and {network.name} {outputs} outputs, so folder names do not number them"
        )
        raise InputError("data", test.path, rule)


def run(source: str, data: str, options: dict[str, Any], html: Path | None) -> Result:
    """Measure a network on data of its task; what the recipe of that task reports at its end."""
    folder, task = task_of(source)
    found: Evaluated = call(task.evaluate, folder, data, options)
    name = Path(source).resolve().name if Path(source).is_dir() else source
    told = {"network": name, "task": task.__name__.rpartition(".")[2], "data": data, **found.part}
    closing = ""
    if html is not None:
        from separable import report

        report.write_page(html, found.title, [found.section()], subtitle=f"{name} on {data}", facts=found.headline)
        closing = f"Page written: {html}"
    return Result(told, [Text(f"{name} on {data}\n\n{found.text}\n")], closing)
