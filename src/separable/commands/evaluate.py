"""How often a network is right, on labelled images prepared as was saved with it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn

from separable.commands.network import Network, open_network, preparation_of
from separable.commands.result import Result
from separable.data import ImageSet, open_images
from separable.errors import InputError, first_line


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
                logits = forward(model, inputs)  # [N, classes]
                if logits.dim() != 2 or len(logits) != len(labels) or int(labels.max()) >= logits.shape[1]:
                    rule = f"must be [{len(labels)}, classes], with a class for each label, up to {int(labels.max())}"
                    raise InputError("network", f"output of shape {list(logits.shape)}", rule)
                if not logits.isfinite().all():
                    raise InputError("network", "output", "holds NaN or infinity; its accuracy would mean nothing")
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


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's output for a batch in the model's own type; a batch that does not fit is the user's to know of."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), inputs.dtype)
    try:
        logits = model(inputs.to(dtype))
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


def run(
    source: str, data: Path, weights: Path | None, split: str | None, images: dict[str, str | None], batch_size: int
) -> Result:
    network = open_network(source, weights)
    test = open_images(data, preparation_of(network, **images), split, classes=network.classes or None)
    test.require_labels()
    measured = accuracy(network.model, test.batches(batch_size, description="evaluating"))
    check_classes(network, test, measured.classes)
    result = {
        "network": network.name,
        "images": measured.examples,
        "skipped": [{"file": file, "reason": reason} for file, reason in test.skipped],
        "top1": measured.top1,
        "top5": measured.top5,
        "preparation": test.preparation.to_json(),
    }
    table = Table(title=f"{network.name} on {data}", title_justify="left", show_header=False)
    table.add_row("images", f"{measured.examples:,}" + (f" ({len(test.skipped)} skipped)" if test.skipped else ""))
    table.add_row("top-1", f"{measured.top1:.2%} ({measured.top1_right:,} right)")
    if measured.top5 is not None:
        table.add_row("top-5", f"{measured.top5:.2%}")
    return Result(result, [table])
