"""What `who_pays` found: plain values, tables for a terminal, and small pictures for a page."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.conversion.who_pays.compare import ACCURACY, AGREEMENT, ERROR
from separable.conversion.who_pays.layers import Layer, Tried
from separable.inputs import Inputs

if TYPE_CHECKING:
    from rich.table import Table

_LISTED = 200  # examples of each kind in to_json(), the surest first; counts are of all
_SIDE = 96  # pixels of a small picture


@dataclass
class Group:
    """All the data, a class, or a slice. Shares run from 0 to 1.

    loss: accuracy lost, answers changed, or mean relative error; low, high: its 95 % interval (None: one example).
    dense, converted: the accuracies; None where another measure stands. lost, won: examples that one network alone gets
    right; without labels all that changed are lost. p: how likely so uneven lost and won are by chance alone, corrected
    for the number of classes, or of slices; None where there are no labels.
    """

    name: str
    examples: int
    loss: float
    low: float | None = None
    high: float | None = None
    dense: float | None = None
    converted: float | None = None
    lost: int = 0
    won: int = 0
    p: float | None = None


@dataclass
class Changed:
    """An example whose answer changed. kind: lost, won, or other, wrong in both; without labels all are lost."""

    index: int
    file: str | None
    kind: str
    label: str | None
    dense: str
    dense_probability: float
    converted: str
    converted_probability: float


@dataclass
class Far:
    """An example whose outputs are far from the dense network's: relative error."""

    index: int
    file: str | None
    error: float


@dataclass
class WhoPays:
    """What each class, each slice and each example lost by a conversion, and which layers are responsible.

    measure: "accuracy" against labels, "agreement" with the dense network where there are none, or "error": how far
    the outputs are from the dense network's, as a share of them, where they are no class logits.
    classes, slices: the largest loss first. changed: lost, won, other, of each the surest first; empty for "error",
    for which far holds the examples with the largest error. layers: the one that gives back most first.
    """

    measure: str
    overall: Group
    classes: list[Group]
    slices: list[Group]
    changed: list[Changed]
    far: list[Far]
    layers: list[Layer]
    tried: Tried
    unlabelled: int  # examples that were left out
    shown: dict[int, Inputs] = field(default_factory=dict, repr=False)

    @property
    def lost(self) -> list[Changed]:
        return [one for one in self.changed if one.kind == "lost"]

    @property
    def won(self) -> list[Changed]:
        return [one for one in self.changed if one.kind == "won"]

    def to_json(self) -> dict[str, Any]:
        """Plain values; the first 200 examples of each kind."""
        kinds = {kind: [one for one in self.changed if one.kind == kind] for kind in ("lost", "won", "other")}
        return {
            "measure": self.measure,
            "overall": asdict(self.overall),
            "classes": [asdict(group) for group in self.classes],
            "slices": [asdict(group) for group in self.slices],
            "changed_examples": {kind: len(many) for kind, many in kinds.items()},
            "changed": [asdict(one) for many in kinds.values() for one in many[:_LISTED]],
            "far": [asdict(one) for one in self.far[:_LISTED]],
            "layers": [layer.to_json() for layer in self.layers],
            "tried": self.tried.to_json(),
            "unlabelled": self.unlabelled,
        }

    def tables(self, most: int = 20) -> list["Table"]:
        """For a terminal: classes, slices, changed examples and layers, at most `most` rows each."""
        from separable.conversion.who_pays.tables import tables

        return tables(self, most)

    def pictures(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> dict[int, Tensor]:
        """Small pictures, uint8 [H, W] or [H, W, 3], of up to 24 examples of each kind, by their index.

        Empty where the inputs are no images [C, H, W] with one or three channels. `mean` and `std` undo the preparation
        of the images; without them each picture is stretched from its darkest to its brightest value.
        """
        found = {}
        for index, inputs in self.shown.items():
            image = inputs.tensors()[0][0].detach().float().cpu()
            if len(inputs.tensors()) == 1 and image.dim() == 3 and image.shape[0] in (1, 3):
                found[index] = _picture(image, mean, std)
        return found


def _picture(image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    if mean is not None and std is not None:
        image = image * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    else:
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    height, width = image.shape[1:]
    if max(height, width) > _SIDE:
        shrink = _SIDE / max(height, width)
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous()


NAMES = {ACCURACY: "accuracy lost", AGREEMENT: "answers changed", ERROR: "relative error"}
