"""What `separable convert` was asked for, and what it has made of it so far."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from separable.commands.network import Network
from separable.commands.unfinished import Unfinished
from separable.conversion import SAMPLES, Study, WhoPays
from separable.conversion.batches import Data
from separable.conversion.headline import headline
from separable.data import ImageSet

_BATCH_SIZE = 128


@dataclass
class Options:
    """What `separable convert` was asked for."""

    source: str
    data: Path
    out: Path
    budget: str | None = None
    target: str | None = None
    threads: int | None = None
    batch: int = 1
    weights: Path | None = None
    split: str | None = None
    test: Path | None = None
    test_split: str | None = None
    slices: Path | None = None
    pareto: bool = False
    samples: int = SAMPLES
    distill: int = 0
    distill_minutes: float | None = None
    patience: int | None = None
    resume: bool = False
    images: dict[str, str | None] = field(default_factory=dict)  # size, mean, std as typed
    seed: int = 0
    overwrite: bool = False


@dataclass
class Work:
    """What the options name, opened, and what was made of it so far."""

    options: Options
    network: Network
    images: ImageSet
    test: ImageSet | None
    slices: dict[str, set[str]] | None
    budget: dict[str, float]
    target: str
    unfinished: Unfinished
    calibration: Tensor  # [N, C, H, W]
    labels: Tensor  # [N]
    conversion: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, nn.Module] = field(default_factory=dict)  # the last is written
    top1: dict[str, float] = field(default_factory=dict)
    study: Study | None = None
    points: list[dict[str, Any]] = field(default_factory=list)  # of accuracy against time
    pays: WhoPays | None = None

    @property
    def data(self) -> Data:
        """What the library converts on: with labels where accuracy is a budget."""
        if "accuracy" not in self.budget:
            return self.calibration
        return list(zip(self.calibration.split(_BATCH_SIZE), self.labels.split(_BATCH_SIZE), strict=True))

    @property
    def example(self) -> Tensor:
        """The batch that is timed: the images that calibrate, again where there are too few."""
        return self.calibration[torch.arange(self.options.batch) % len(self.calibration)]

    def about(self) -> dict[str, Any]:
        """What is known of the network that is written."""
        options = self.options
        about = {
            "source": self.network.name,
            "weights": "as the source makes them" if options.weights is None else options.weights.name,
            "preparation": self.images.preparation.to_json(),
            "classes": self.images.classes or self.network.classes,
            "input_shape": [1, *self.calibration.shape[1:]],
            "conversion": self.conversion,
        }
        if self.top1 and options.test is not None:
            about["measured"] = {"test": options.test.name, "top1": self.top1}
        return about

    def last_line(self) -> str:
        """Of the network that is written: distillation changes no shape, so the times are its own."""
        last, dense = self.top1.get(list(self.stages)[-1]), self.top1.get("dense")
        return headline(self.conversion, None if last is None or dense is None else 100 * (last - dense))

    def measured(self) -> dict[str, Any]:
        """What the page and the JSON tell beside what is saved with the network."""
        pays = {} if self.pays is None else {"who_pays": self.pays.to_json()}
        points = {"pareto": self.points} if self.points else {}
        return {"headline": self.last_line(), **points, **pays}
