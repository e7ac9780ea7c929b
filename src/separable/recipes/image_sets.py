"""Where a recipe's images come from, the network they go to, and how they are varied in training."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from separable import models, store
from separable.data import ImageSet, Preparation, files, open_images
from separable.errors import InputError
from separable.inputs import own_copy
from separable.models import sources
from separable.models.residual_separable import ResidualSeparable

_SPLITS = {"train": ("train", "training"), "valid": ("valid", "val", "validation", "dev"), "test": ("test", "testing")}
_OWN = {
    "mobilenetv1": models.MobileNetV1,
    "mobilenetv2": models.MobileNetV2,
    "mobilenetv3_small": models.MobileNetV3Small,
    "mobilenetv3_large": models.MobileNetV3Large,
    "xception": models.Xception,
}
VARIATIONS = ("crop", "flip", "resize", "trivial", "erase")


def open_set(place: str, role: str, preparation: Preparation, classes: Sequence[str] | None = None) -> ImageSet:
    """Images of a role ("train", "valid", "test"): from any place `open_images` knows, or torchvision:NAME:FOLDER.

    Of a place with several splits the one with the role's name is taken.
    """
    kind, _, rest = place.partition(":")
    if kind == "torchvision":
        return _from_torchvision(place, *rest.partition(":")[::2], role, preparation, classes)
    try:
        return open_images(place, preparation, classes=classes)
    except InputError as error:
        if error.argument != "split":
            raise
        several = error
    for split in _SPLITS[role]:
        try:
            return open_images(place, preparation, split, classes=classes)
        except InputError as error:
            if error.argument != "split":
                raise
    raise several


def _from_torchvision(place, name, folder, role, preparation, classes) -> ImageSet:
    sources.import_torchvision()
    from torchvision import datasets

    make: Any = getattr(datasets, name, None)
    if not _is_dataset(make):
        raise InputError(role, place, "names no data set of torchvision; write torchvision:NAME:FOLDER")
    takes = inspect.signature(make).parameters
    split: dict[str, Any] = {"train": role == "train"} if "train" in takes else {}
    split = {"split": {"valid": "val"}.get(role, role)} if "split" in takes else split
    try:
        dataset: Any = make(folder or ".", **split)
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        raise InputError(role, place, f"cannot be opened: {str(error).splitlines()[0]}") from None
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    labels = [int(y) for y in labels] if labels is not None else [int(dataset[i][1]) for i in range(len(dataset))]
    known = list(classes or getattr(dataset, "classes", None) or map(str, range(max(labels) + 1)))
    if max(labels) >= len(known):
        raise InputError(role, place, f"has the label {max(labels)}, and there are {len(known)} classes")
    found = files.Files([f"{name}[{i}]" for i in range(len(labels))], labels, [str(c) for c in known])
    return ImageSet(Path(folder or "."), found, lambda i: dataset[i][0], preparation)


def _is_dataset(made: Any) -> bool:
    from torchvision.datasets import VisionDataset

    return inspect.isclass(made) and issubclass(made, VisionDataset)


def sized(size: int, about: Preparation | None) -> Preparation:
    """How images become bytes: to `size` where given, else to what the network was made for, else as they are."""
    if about is not None and about.size is not None and not size:
        return Preparation(about.size, about.resize, about.crop_fraction, about.interpolation)
    return Preparation((size, size) if size else None)


def open_network(name: str, weights: Path | None, init: Path | None) -> tuple[nn.Module | None, Preparation | None]:
    """The saved network of the folder `init`, or one from timm, torchvision or a file; (None, None) for one of ours."""
    if init is not None:
        about = store.read_about(init)
        if about.get("task", "image") != "image":
            raise InputError("init", str(init), f"holds a network for {about['task']}, not for images")
        known = about.get("preparation")
        return store.load(init), Preparation.from_json(known) if known else None
    if name == "compact" or name in _OWN:
        return None, None
    if ":" not in name:
        rule = f"must be compact, {', '.join(_OWN)}, timm:NAME, torchvision:NAME or FILE.py:FACTORY"
        raise InputError("network", name, rule)
    source = models.read_model(name, weights)
    if not isinstance(source.preparation, dict):
        return source.model, None
    return source.model, Preparation.from_settings(source.preparation)


def our_network(settings: Any, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """One of the networks of `models`, with random weights, for images of this (C, H, W)."""
    channels, *sides = shape
    if settings.network == "compact":
        form = (settings.widths, settings.depths, settings.kernel_size, settings.expand_ratio, settings.dropout)
        return ResidualSeparable(classes, channels, *form)
    reduction = settings.reduction or max(r for r in (1, 2, 4, 8, 16, 32) if r == 1 or 4 * r <= min(sides) + 4)
    width = {} if settings.network == "xception" else {"width_multiplier": settings.width_multiplier}
    return _OWN[settings.network](classes, channels, reduction=reduction, **width)


def fit_classes(network: nn.Module, classes: int, example: Tensor) -> None:
    """Give a network that tells apart another number of classes a new last layer; one that fits stays as it is."""
    network.eval()
    with torch.no_grad():
        outputs = network(own_copy(example))
    if outputs.dim() == 2 and outputs.shape[1] == classes:
        return
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
    if outputs.dim() != 2 or not last or network.get_submodule(last[0]).out_features != outputs.shape[1]:
        rule = f"does not end in a linear layer; it gives {list(outputs.shape)}, and there are {classes} classes"
        raise InputError("network", type(network).__name__, rule)
    old = network.get_submodule(last[0])
    assert isinstance(old, nn.Linear)
    network.set_submodule(last[0], nn.Linear(old.in_features, classes, bias=old.bias is not None))


def variation(names: Sequence[str], size: Sequence[int], pad: int) -> Callable[[Tensor], Tensor]:
    """Random changes by torchvision for bytes [n, C, H, W], the same for the n images of one call.

    "crop": out of the image with `pad` black pixels around; "flip": left and right; "resize": a part of 0.35 to 1 of
    the area; "trivial": one of many changes of shape or colour (Müller and Hutter 2021, arXiv:2103.10158); "erase": a
    rectangle (Zhong et al. 2017, arXiv:1708.04896).
    """
    sources.import_torchvision()
    from torchvision.transforms import v2

    made = {
        "crop": lambda: v2.RandomCrop(size, padding=pad),
        "flip": lambda: v2.RandomHorizontalFlip(),
        "resize": lambda: v2.RandomResizedCrop(size, scale=(0.35, 1.0)),
        "trivial": lambda: v2.TrivialAugmentWide(),
        "erase": lambda: v2.RandomErasing(0.5),
    }
    unknown = [name for name in names if name not in made]
    if unknown:
        raise InputError("augment", ", ".join(unknown), f"must be of {', '.join(VARIATIONS)}, with commas between")
    return v2.Compose([made[name]() for name in names]) if names else lambda images: images
