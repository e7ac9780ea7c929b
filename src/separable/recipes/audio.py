"""Train a network that hears keywords on labelled sounds; read from the top, copy it, change it.

    python -m separable.recipes.audio --data speech_commands --out runs/words
    python -m separable.recipes.audio --data recordings.tar.xz --out runs/digits \\
        --names '(?P<label>[0-9])_(?P<speaker>[a-z]+)_(?P<take>[0-9]+)' --test take=0-4 --valid take=5-9

`--network small`, medium and large are DS-CNN on MFCC; causal hears frame by frame and also streams. Everything is
chosen on `valid`; `test` is read once, at the end. docs/recipes.md has what it reaches.
Source: Zhang et al. 2017, arXiv:1711.07128; Majumdar and Ginsburg 2020, arXiv:2004.08531.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from separable import cost
from separable.data import wav
from separable.data.features import Features
from separable.data.sound_variation import Clipped, Variation, vary_spectrum
from separable.errors import InputError
from separable.recipes import audio_reports, beginning, command_line, learning, result_page, running
from separable.recipes.rules import Count, Counts, MaybeCount, Rate, Share, ShareBelow1, Weight
from separable.recipes.running import Running
from separable.recipes.saved_listener import Listener, build, evaluate


@dataclass
class Settings(Running):
    """What can be set; docs/recipes.md says what its numbers were reached with, and benchmarks/audio.py sets it."""

    data: Path = Path("sounds")  # a folder, a tar
    names: str = wav.FOLDERS  # what a path says; see data.wav
    valid: str = "10%"  # a share by name, or a part of the names: split=valid, take=5-9
    test: str | None = None  # likewise; read once, at the end
    rate: MaybeCount = None  # samples a second; without, that of most files
    strict: bool = False  # refuse a set with a bad file, rather than leave the file out
    network: str = "small"  # or medium, large, causal
    init: Path | None = None  # a saved network that hears, to go on from; with other classes, its last layer is new
    teacher: Path | None = None  # a saved network that hears the same classes, to learn from
    teaching: Share = 0.7  # share of the teacher in the loss
    seconds: Rate = 1.0  # of the window a clip stands in
    epochs: Count = 24
    batch: Count = 32  # clips of a batch
    learning_rate: Rate = 1e-2
    weight_decay: Weight = 0.02  # of matrices and filters
    smoothing: ShareBelow1 = 0.05  # of the labels
    average: ShareBelow1 = 0.99
    speeds: Counts = field(default_factory=lambda: (100, 80, 90, 110, 120))  # percent
    vary: bool = True  # speed, place, loudness, noise, masks


class ListenerTraining(running.Training):
    """The network, its batches, its loss and its optimiser."""

    def __init__(self, listener: Listener, settings: Settings, train: list[wav.Clip], valid: list[wav.Clip]):
        super().__init__()
        self.network, self.listener, self.settings = listener.network, listener, settings
        lay_out(self.network, torch.channels_last)  # twice as fast on a processor
        self.variation = Variation()
        self.sounds = Clipped([clip.samples for clip in train], listener.window, settings.speeds)
        self.labels = torch.tensor([listener.classes.index(clip.parts["label"]) for clip in train])
        known = [clip for clip in valid if clip.parts["label"] in listener.classes]
        whole = Clipped([clip.samples for clip in known], listener.window)
        self.valid_x = listener.features(whole.whole(torch.arange(whole.count)))  # [N, frames, size]
        self.valid_y = torch.tensor([listener.classes.index(clip.parts["label"]) for clip in known])
        self.teacher = [Listener.load(settings.teacher)] if settings.teacher else []  # a list: not a part of this
        for teacher in self.teacher:
            if (teacher.classes, teacher.features.rate) != (listener.classes, listener.features.rate):
                rule = "hears other classes, or another rate, than the sounds to train on have"
                raise InputError("teacher", str(settings.teacher), rule)

    def plan(self, epoch: int) -> tuple[Tensor, ...]:
        """The clips of each batch of an epoch; every process has its own share, all shares equally long."""
        draw = torch.Generator().manual_seed(self.settings.seed * 100_003 + epoch)
        rank, processes = running.world()
        size = min(self.settings.batch, len(self.labels) // processes)
        used = len(self.labels) - len(self.labels) % (size * processes)
        return torch.randperm(len(self.labels), generator=draw)[:used][rank::processes].split(size)

    def train_dataloader(self) -> running.Steps:
        return running.Steps(len(self.plan(0)))

    def val_dataloader(self) -> running.Steps:
        return running.Steps(1)

    def training_step(self, number: int, batch_idx: int) -> Tensor:
        running.seed_step(self.settings.seed, self)
        return self.noted(self.loss(self.plan(self.current_epoch)[batch_idx]))

    def loss(self, numbers: Tensor) -> Tensor:
        """Of these clips, varied anew: cross entropy with their labels and, where there is one, with the teacher."""
        features = self.listener.features
        samples = self.sounds.varied(numbers, self.variation) if self.settings.vary else self.sounds.whole(numbers)
        heard = features.log_mel(samples)  # [N, frames, bands]
        heard = vary_spectrum(heard, self.variation) if self.settings.vary else heard
        scores = self.network(features.finish(heard).to(self.device))  # [N, classes]
        labels, smoothing = self.labels[numbers].to(self.device), self.settings.smoothing
        loss = F.cross_entropy(scores, labels, label_smoothing=smoothing)
        for teacher in self.teacher:
            with torch.no_grad():
                wanted = teacher.network(teacher.features(samples)).softmax(1).to(self.device)
            loss = torch.lerp(loss, F.cross_entropy(scores, wanted), self.settings.teaching)
        return loss

    def validation_step(self, number: int, batch_idx: int) -> None:
        scores = torch.cat([self.network(part.to(self.device)).cpu() for part in self.valid_x.split(256)])
        accuracy = float((scores.argmax(1) == self.valid_y).double().mean())
        loss = float(F.cross_entropy(scores, self.valid_y))
        # the best epoch is chosen by likelihood: accuracy soon stands still
        self.log_dict({"valid_accuracy": accuracy, "valid_likelihood": -loss}, batch_size=len(scores))
        self.end_epoch(valid_loss=loss, valid_accuracy=accuracy)

    def configure_optimizers(self) -> Any:
        """AdamW; weight decay on matrices and filters alone; a warm start, then down along half a cosine."""
        whole = [p for p in self.network.parameters() if p.dim() > 1]
        single = [p for p in self.network.parameters() if p.dim() <= 1]
        groups = [
            {"params": whole, "weight_decay": self.settings.weight_decay},
            {"params": single, "weight_decay": 0.0},
        ]
        share = learning.half_cosine(self.settings.epochs * len(self.plan(0)), least=0.005)
        return learning.adamw(groups, self.settings, share)


def lay_out(network: torch.nn.Module, memory_format: torch.memory_format) -> None:
    """The weights of 2-D convolutions in another order in memory."""
    for weight in network.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=memory_format)


def main(settings: Settings) -> dict[str, Any]:
    """Read, train, choose the best epoch on valid, save the network, report on valid and test.

    Writes below settings.out: network/ (see saved_listener), results.json, report.html, checkpoints/, tensorboard/.
    """
    beginning.check(settings)
    sounds, parts = read(settings)
    listener = begin(settings, sounds.rate, parts["rest"])
    module = ListenerTraining(listener, settings, parts["rest"], parts["valid"])
    trained = learning.train(module, settings, monitor="valid_likelihood")
    if trained is None:
        return {}  # one process saves and reports
    lay_out(module.network, torch.contiguous_format)
    listener.save(settings.out / "network", overwrite=True)
    counted = cost.count(listener.network.folded(), listener.features(torch.zeros(1, listener.window)))
    results: dict[str, Any] = {
        **trained,
        "classes": listener.classes,
        "params": counted.params,
        "macs": counted.macs,
        "clips": {name: len(some) for name, some in parts.items()},
        "skipped": sounds.skipped,
        "resampled": sounds.resampled,
    }
    audio_reports.write(settings.out, results, parts, sounds.rate)  # it stays, whatever becomes of the rest
    for name in ("valid", "test"):
        if name in parts:
            results[name] = evaluate(listener, parts[name])
    audio_reports.write(settings.out, results, parts, sounds.rate)
    return results


def read(settings: Settings) -> tuple[wav.Clips, dict[str, list[wav.Clip]]]:
    """The sounds, and which of them test, choose and train ("rest")."""
    sounds = wav.read(settings.data, settings.names, rate=settings.rate, strict=settings.strict)
    wanted = {"test": settings.test} if settings.test else {}
    parts = sounds.divide(**wanted, valid=settings.valid)
    known = {clip.parts["label"] for clip in parts["rest"]}
    if len(known) < 2:
        rule = f"leave {len(known)} classes to train on; at least 2 are needed"
        raise InputError("valid and test", " ".join([settings.valid, *wanted.values()]), rule)
    if not any(clip.parts["label"] in known for clip in parts["valid"]):
        raise InputError("valid", settings.valid, "holds no class that is trained on")
    return sounds, parts


def begin(settings: Settings, rate: int, train: list[wav.Clip]) -> Listener:
    """The network before training, with what it hears by: new, or the one of `init`."""
    classes = sorted({clip.parts["label"] for clip in train})
    torch.manual_seed(settings.seed)
    if settings.init:
        return go_on(settings, rate, classes)
    features = Features(rate, coefficients=0 if settings.network == "causal" else 10)
    some = train[:: max(1, len(train) // 2000)]
    features = features.fitted(torch.cat([clip.samples for clip in some])[None])
    shape: dict[str, Any] = {"kind": settings.network, "num_classes": len(classes)}
    if settings.network == "causal":
        frames = features.log_mel(torch.zeros(1, round(settings.seconds * rate))).shape[1]
        shape |= {"bands": features.size, "memory": frames}
    return Listener(build(shape), shape, features, classes, settings.seconds)


def go_on(settings: Settings, rate: int, classes: list[str]) -> Listener:
    """The saved network of `init`, whose features and window stay; a new last layer, where its classes are others."""
    assert settings.init is not None
    saved = Listener.load(settings.init)
    if saved.features.rate != rate:
        raise InputError(
            "init", str(settings.init), f"hears {saved.features.rate} Hz, the sounds have {rate}; set rate"
        )
    if saved.classes != classes:
        shape = {**saved.shape, "num_classes": len(classes)}
        weights = {k: v for k, v in saved.network.state_dict().items() if not k.startswith("classifier.")}
        network = build(shape)
        network.load_state_dict(weights, strict=False)
        saved = Listener(network, shape, saved.features, classes, saved.seconds)
    saved.network.train()
    return saved


def told(results: dict[str, Any]) -> str:
    """What was measured, for a terminal."""
    return result_page.told(results, audio_reports.text)


if __name__ == "__main__":
    command_line.run(Settings, main, told)
