"""Images: how often a network is right about them, and what it says of those that nobody has labelled."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from separable.commands.evaluate import Evaluated, check_classes, forward, logits_of
from separable.commands.network import Network, open_network, preparation_of
from separable.commands.predict import Row, tell
from separable.data import ImageSet, files, open_images
from separable.data.pixels import to_bytes
from separable.errors import InputError, need
from separable.progress import track
from separable.recipes import image_reports, image_sets

WANTED = "image files, folders or tars of them"
COLUMNS = ("input", "label", "probability")
AT_ONCE = 64
_LISTED = 100  # classes of the largest confusion matrix that is told


def evaluate(
    source: str,
    data: str,
    *,
    weights: Path | None = None,
    split: str | None = None,
    size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    batch_size: int = 256,
    strict: bool = False,
) -> Evaluated:
    """Accuracy, rows of each class, confusion and the surest mistakes, on images prepared as was saved with it."""
    network = open_network(source, weights)
    test = open_test(network, data, split, size, mean, std)
    chances, labels, seconds = _outputs(network, test, batch_size)
    if strict and test.skipped:
        name, reason = test.skipped[0]
        raise InputError("data", data, f"{len(test.skipped)} cannot be used, the first {name}: {reason}")
    check_classes(network, test, chances.shape[1])
    names = network.classes or test.classes
    names = names if len(names) == chances.shape[1] else [str(i) for i in range(chances.shape[1])]
    part = image_reports.measure(labels, chances, names)
    bad = {name for name, _ in test.skipped}
    places = [i for i, name in enumerate(test.names) if name not in bad]
    pictures = []
    for mistake in part["mistakes"]:
        place = places[mistake["image"]]
        mistake["file"] = test.names[place]
        pictures.append(to_bytes(test.preparation.pixels(test.image(place))))
    shown = torch.bincount(labels, minlength=len(names)).tolist()
    part |= {
        "top1": part["accuracy"],
        "images_per_s": len(labels) / seconds,
        "skipped": test.skipped,
        "empty": [name for name, count in zip(names, shown, strict=True) if not count],
        "preparation": test.preparation.to_json(),
    }
    name = Path(data).name
    section = partial(image_reports.section, name, part, pictures)
    if len(names) > _LISTED:
        section = partial(image_reports.section, name, dict(part), pictures)
        del part["confusion"]
    return Evaluated(part, image_reports.text(part), image_reports.TITLE, section, image_reports.headline(name, part))


def open_test(
    network: Network, data: str, split: str | None, size: str | None, mean: str | None, std: str | None
) -> ImageSet:
    """Labelled images, prepared as was saved with the network or as asked."""
    preparation = preparation_of(network, size, mean, std)
    if data.startswith("torchvision:"):
        test = image_sets.open_set(data, "test", preparation, network.classes or None)
    else:
        test = open_images(data, preparation, split, classes=network.classes or None)
    test.require_labels()
    return test


@torch.inference_mode()
def _outputs(network: Network, test: ImageSet, batch_size: int) -> tuple[Tensor, Tensor, float]:
    """Of all readable images the probabilities [N, classes], the labels [N], and the seconds the network took."""
    network.model.eval()
    chances, labels, seconds = [], [], 0.0
    for images, known in test.batches(batch_size, description="evaluating"):
        began = time.perf_counter()
        chances.append(logits_of(network.model, images, known).softmax(1))
        seconds += time.perf_counter() - began
        labels.append(known)
    return torch.cat(chances), torch.cat(labels), seconds


def predict(
    source: str,
    inputs: list[str],
    *,
    weights: Path | None = None,
    size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
) -> Iterator[Row]:
    """Rows {"input", "label", "probability"}."""
    network = open_network(source, weights)
    places = list(itertools.chain.from_iterable(map(_image_places, inputs)))
    found = files.Files([name for name, _ in places], [-1] * len(places))
    preparation = preparation_of(network, size, mean, std)
    shown = ImageSet(Path("."), found, lambda i: places[i][1](), preparation)
    batch: list[Tensor] = []
    waiting: list[Row] = []  # rows since the last batch, those of its images still without a label
    for number in track(range(len(places)), "predicting"):
        row: Row = {"input": places[number][0]}
        try:
            image = shown[number][0]
        except InputError as error:
            if error.argument != "data":
                raise
            row["error"] = error.rule
            tell(row)
        else:
            if batch and image.shape != batch[0].shape:
                yield from _labelled(network, batch, waiting)
                batch, waiting = [], []
            batch.append(image)
        waiting.append(row)
        if len(batch) == AT_ONCE:
            yield from _labelled(network, batch, waiting)
            batch, waiting = [], []
    yield from _labelled(network, batch, waiting)


@torch.inference_mode()
def _labelled(network: Network, batch: list[Tensor], rows: list[Row]) -> list[Row]:
    """The rows with what the network says of the images among them."""
    if not batch:
        return rows
    chances, classes = forward(network.model, torch.stack(batch)).softmax(1).max(1)
    names: list[str] = network.classes
    good = [row for row in rows if "error" not in row]
    for row, chance, number in zip(good, chances.tolist(), classes.tolist(), strict=True):
        row["label"] = names[number] if number < len(names) else str(number)
        row["probability"] = round(chance, 6)
    return rows


def _image_places(place: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and opener of an image, of all below a folder, or of all in a tar, a list or idx files."""
    path = Path(place)
    if path.is_dir():
        below = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in files.IMAGES and not p.name.startswith(".")]
        if below:
            yield from ((str(file), partial(_open_image, file)) for file in below)
            return
    elif path.is_file() and (path.suffix.lower() in files.IMAGES):
        yield place, partial(_open_image, path)
        return
    elif not path.exists():
        raise InputError("INPUT", place, "does not exist")
    listed = open_images(path)
    yield from ((f"{place}/{name}", partial(listed.image, i)) for i, name in enumerate(listed.names))


def _open_image(file: Path) -> Any:
    image = need("PIL.Image", "deploy", "to read images").open(file)
    image.load()
    return image
