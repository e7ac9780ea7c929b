"""Train or fine-tune a network that tells apart images; read from the top, copy it, change it.

    python -m separable.recipes.image --train DATA --test DATA --out runs/fashion

DATA: a folder or tar of class/file, with or without split folders, a .csv of files and labels, idx files, or
torchvision:NAME:FOLDER. Everything is chosen on `valid`, or on a part of `train` held out; `test` is read once, at the
end. `--init FOLDER` goes on from a saved network, a converted one too; `--teacher FOLDER` distils. docs/recipes.md has
what it reaches. Source of the distillation: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.
"""

import copy
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from separable import atomic, cost, progress, store
from separable.data import Preparation
from separable.data.pixels import Pixels
from separable.errors import InputError
from separable.recipes import beginning, command_line, image_reports, learning, result_page, running
from separable.recipes.image_sets import fit_classes, open_network, open_set, our_network, sized, variation
from separable.recipes.rules import Channels, Count, Counts, Rate, Share, ShareBelow1, Weight, Whole
from separable.recipes.running import Running


@dataclass
class Settings(Running):
    """What can be set; docs/recipes.md says what its numbers were reached with, and benchmarks/image.py sets it."""

    train: str = ""  # a folder or tar of class/file, a .csv, idx files, or torchvision:NAME:FOLDER
    valid: str = ""  # likewise
    test: str = ""  # likewise; read once, at the end
    valid_share: ShareBelow1 = 0.1  # of train, held out where valid is not given; 0: train on all, keep the last epoch
    strict: bool = False  # refuse images of which one cannot be used, rather than leave it out
    size: Whole = 0  # side of the images in pixels; 0: as the network wants them, or as they are
    channels: Channels = 0  # 1 or 3; 0: as the network wants them, or 1 where no image has colour
    network: str = "compact"  # or mobilenetv1, -v2, -v3_small, -v3_large, xception, timm:NAME, FILE.py:FACTORY, ...
    weights: Path | None = None  # for timm:NAME, torchvision:NAME or FILE.py:FACTORY
    init: Path | None = None  # a saved network, a converted one too, in place of `network`
    widths: Counts = field(default_factory=lambda: (48, 96))  # channels of each stage of the compact network
    depths: Counts = field(default_factory=lambda: (2, 3))  # blocks of each stage
    kernel_size: Count = 3  # of the compact network
    expand_ratio: Count = 2  # likewise
    dropout: ShareBelow1 = 0.0  # before the last layer of the compact network
    width_multiplier: Rate = 1.0  # of the MobileNets
    reduction: Whole = 0  # image side over that of the last maps; 0: by the image's side
    teacher: Path | None = None  # a saved network of the same classes
    temperature: Rate = 4.0  # by which both outputs are softened in the distance to the teacher
    label_weight: Share = 0.1  # of the labels beside the teacher
    augment: str = "crop,flip"  # of crop, flip, resize, trivial, erase, with commas
    pad: Whole = 2  # pixels around an image that is cropped
    together: Count = 4  # images that are varied alike
    epochs: Count = 14
    batch_size: Count = 128  # images of a batch
    learning_rate: Rate = 1e-2
    weight_decay: Weight = 0.05  # of matrices and filters
    warm_up: Share = 0.2  # of all steps
    label_smoothing: ShareBelow1 = 0.1  # share of each label given to all classes


class Teacher:
    """A saved network that only gives its opinion; it takes the bytes that the student takes."""

    def __init__(self, folder: Path, classes: list[str]):
        about = store.read_about(folder)
        if about.get("classes", classes) != classes:
            raise InputError("teacher", str(folder), "tells apart other classes than the training images show")
        self.network = store.load(folder)
        self.preparation = Preparation.from_json(about.get("preparation", {}))

    def __deepcopy__(self, memo: dict) -> "Teacher":
        return self  # the average of the student's weights needs no second teacher

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.network.to(images.device)(normalise(images, self.preparation)).float()


class ImageTraining(running.Training):
    """The network, its batches, its loss and its optimiser."""

    def __init__(self, network: nn.Module, settings: Settings, train: Pixels, valid: Pixels, preparation: Preparation):
        super().__init__()
        self.network, self.settings, self.preparation = network, settings, preparation
        self.train_set, self.valid_set = train, valid
        self.train_places, self.valid_places = held_out(len(train), 0.0 if settings.valid else settings.valid_share)
        if settings.valid:
            self.valid_places = torch.arange(len(valid))
        names = [name for name in settings.augment.split(",") if name]
        self.vary = variation(names, train.shape[1:], settings.pad)
        self.teacher = Teacher(settings.teacher, train.classes) if settings.teacher else None
        self.right, self.planned = 0, (-1, torch.empty(0))

    def plan(self, epoch: int) -> Tensor:
        """The images of each batch of an epoch [batches, batch_size]; every process has its own share."""
        if self.planned[0] != epoch:
            drawn = torch.Generator().manual_seed(self.settings.seed * 1000 + epoch)
            order = self.train_places[torch.randperm(len(self.train_places), generator=drawn)]
            size = min(self.settings.batch_size, len(order))
            rank, processes = running.world()
            batches = order[: len(order) // size * size].view(-1, size)
            self.planned = epoch, batches[rank : len(batches) - len(batches) % processes : processes]
        return self.planned[1]

    def train_dataloader(self) -> running.Steps:
        return running.Steps(len(self.plan(0)))

    def val_dataloader(self) -> running.Steps:
        return running.Steps(max(1, math.ceil(len(self.valid_places) / 500)))

    def training_step(self, number: int, batch_idx: int) -> Tensor:
        running.seed_step(self.settings.seed, self)
        numbers = self.plan(self.current_epoch)[batch_idx]
        images = self.train_set.take(numbers)  # [batch_size, C, H, W] bytes
        images = torch.cat([self.vary(part) for part in images.split(self.settings.together)]).to(self.device)
        labels = self.train_set.labels[numbers].to(self.device)
        outputs = self.network(normalise(images, self.preparation))
        loss = F.cross_entropy(outputs, labels, label_smoothing=self.settings.label_smoothing)
        if self.teacher is not None:
            share, softness = self.settings.label_weight, self.settings.temperature
            loss = share * loss + (1 - share) * distance(outputs.float(), self.teacher(images), softness)
        return self.noted(loss)

    def validation_step(self, number: int, batch_idx: int) -> None:
        numbers = self.valid_places[batch_idx * 500 : (batch_idx + 1) * 500]
        if len(numbers):
            outputs = self.network(normalise(self.valid_set.take(numbers).to(self.device), self.preparation))
            self.right += int((outputs.argmax(1).cpu() == self.valid_set.labels[numbers]).sum())

    def on_validation_epoch_end(self) -> None:
        measured = {"valid_accuracy": self.right / len(self.valid_places)} if len(self.valid_places) else {}
        self.log_dict({**measured, "epochs_done": self.current_epoch + 1.0})
        self.right = 0
        self.end_epoch(**measured)

    def configure_optimizers(self) -> Any:
        plain = [p for p in self.network.parameters() if p.requires_grad and p.dim() < 2]
        matrices = [p for p in self.network.parameters() if p.requires_grad and p.dim() >= 2]
        decay = self.settings.weight_decay
        groups = [{"params": matrices, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
        total = self.settings.epochs * len(self.plan(0))
        warm = max(1, round(total * self.settings.warm_up))

        def share(step: int) -> float:
            """Up along a line, then down along a line to nothing: one cycle."""
            return (step + 1) / warm if step < warm else max(0.0, (total - step) / max(1, total - warm))

        return learning.adamw(groups, self.settings, share)


def main(settings: Settings) -> dict[str, Any]:
    """Read, train, choose the best epoch on valid, save the network, report on valid and test.

    Writes below settings.out: network/ (see store), results.json, report.html, checkpoints/, tensorboard/.
    """
    beginning.check(settings)
    torch.manual_seed(settings.seed)
    network, known = open_network(settings.network, settings.weights, settings.init)
    sets = read(settings, known)
    train, example = sets["train"], torch.zeros(1, *sets["train"].shape)
    plain = sized(settings.size, known)
    preparation = known or measured(train)
    preparation = replace(preparation, **{k: getattr(plain, k) for k in ("size", "resize", "crop_fraction")})
    if network is None:
        network = our_network(settings, len(train.classes), train.shape)
    if not settings.init or store.read_about(settings.init).get("classes") != train.classes:
        fit_classes(network, len(train.classes), example)
    network = network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = ImageTraining(network, settings, train, sets.get("valid", train), preparation)
    trained = learning.train(module, settings, "valid_accuracy" if len(module.valid_places) else "epochs_done")
    if trained is None:
        return {}  # one process saves and reports
    network = module.network.eval()
    counted = cost.count(network, example)
    results: dict[str, Any] = {
        **trained,
        "classes": train.classes,
        "params": counted.params,
        "macs": counted.macs,
        "images": {"train": len(module.train_places), "grey": train.grey},
        "skipped": {"train": train.skipped},
        "saved": save(
            network, settings.out / "network", example, {"preparation": preparation, "classes": train.classes}
        ),
    }
    pictures: dict[str, list[Tensor]] = {}
    image_reports.write(settings.out, results, pictures)  # it stays, whatever becomes of the rest
    for name, places in (("valid", module.valid_places), ("test", torch.arange(len(sets.get("test", ()))))):
        if len(places):
            results[name], pictures[name] = evaluate(network, sets.get(name, train), places, preparation)
    image_reports.write(settings.out, results, pictures)
    return results


def read(settings: Settings, known: Preparation | None) -> dict[str, Pixels]:
    """The sets that are given, by their role, as the network wants them: all of them, so that none is missed later."""
    plain = sized(settings.size, known)
    channels = known.channels if known else settings.channels
    train = Pixels(open_set(settings.train, "train", plain), channels, settings.strict)
    if train.empty:
        raise InputError("train", settings.train, f"shows no readable image of {', '.join(train.empty)}")
    sets = {"train": train}
    for role, place in (("valid", settings.valid), ("test", settings.test)):
        if place:
            sets[role] = Pixels(open_set(place, role, plain, train.classes), train.shape[0], settings.strict)
    return sets


def held_out(count: int, share: float) -> tuple[Tensor, Tensor]:
    """Numbers of the images to train on and of those held out, the same for every seed."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    kept = count - round(count * share)
    return order[:kept].sort().values, order[kept:].sort().values


def measured(train: Pixels) -> Preparation:
    """Mean and deviation of each channel over up to 10,000 training images."""
    some = train.take(torch.linspace(0, len(train) - 1, min(len(train), 10_000)).long()).float().div_(255)
    std, mean = torch.std_mean(some, (0, 2, 3))
    return Preparation(mean=tuple(mean.tolist()), std=tuple(std.clamp_min(1 / 255).tolist()), channels=train.shape[0])


def normalise(images: Tensor, preparation: Preparation) -> Tensor:
    """Bytes [N, C, H, W] as the network takes them, channels last."""
    mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (preparation.mean, preparation.std))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) || softmax(student / T)) of logits [N, classes], mean over images."""
    said, meant = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(said, meant, reduction="batchmean", log_target=True)


def save(network: nn.Module, folder: Path, example: Tensor, about: dict[str, Any]) -> str:
    """Save the network with its graph, or, where its code cannot be followed, its weights alone; says which."""
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        store.save(plain, folder, example=example, about=about, overwrite=True)
        return "network"
    except InputError as error:
        if error.argument != "model":
            raise
        reason = str(error)
    with atomic.write_beside(folder.with_name("weights.safetensors")) as beside:
        save_file({name: value.contiguous() for name, value in plain.state_dict().items()}, beside)
    return f"weights alone: {reason}"


@torch.inference_mode()
def evaluate(network: nn.Module, part: Pixels, places: Tensor, preparation: Preparation) -> tuple[dict, list[Tensor]]:
    """What the network makes of the images `places`: a report, and the first images it mistakes."""
    outputs, seconds = [], 0.0
    for numbers in progress.track(places.split(500), "evaluating"):
        images = normalise(part.take(numbers), preparation)
        began = time.perf_counter()
        outputs.append(network(images).softmax(1))
        seconds += time.perf_counter() - began
    report = image_reports.measure(part.labels[places], torch.cat(outputs), part.classes)
    wrong = torch.tensor([row["image"] for row in report["mistakes"]], dtype=torch.long)
    report |= {"images_per_s": len(places) / seconds, "skipped": part.skipped, "empty": part.empty}
    return report, list(part.take(places[wrong])) if len(wrong) else []


def told(results: dict[str, Any]) -> str:
    """What was measured, for a terminal."""
    return result_page.told(results, image_reports.text)


if __name__ == "__main__":
    command_line.run(Settings, main, told)
