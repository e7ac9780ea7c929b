"""Trained dense networks that `convert.py` and `peers.py` convert: what calibrates each, and what it is judged on.

Each needs data that the project does not carry: SEPARABLE_DATA is the folder with cifar10/, conll2003/ and fsdd/,
SEPARABLE_FASHION the one with the idx files of Fashion-MNIST (where Debian's package puts them, if not given), and
SEPARABLE_NETS a Python file that gives a text detector and a pitch tracker, `craft(cache)` and `crepe(cache)`, and
draws images of words, `words(number, size, seed, vocabulary)`. "vgg, fashion" and "spoken digits" are trained here when
first asked for, some minutes each on one thread, and kept.
"""

import importlib.util
import io
import lzma
import math
import os
import random
import sys
import tarfile
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from resnet20 import preprocess, resnet20
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from separable import atomic
from separable.data import idx
from separable.progress import track

HERE = Path(__file__).parent
BATCH = 128  # of training
DATA = Path(os.environ.get("SEPARABLE_DATA") or HERE.parents[1] / "shared" / "data")
FASHION = Path(os.environ.get("SEPARABLE_FASHION") or "/usr/share/datasets/fashion-mnist")
NETS = Path(os.environ.get("SEPARABLE_NETS") or HERE.parents[1] / "shared" / "tools" / "real_nets.py")
CACHE = Path.home() / ".cache" / "separable-nets"


@dataclass(frozen=True)
class Dense:
    """network: trained. calibration: a tensor for a seed. score: of a converted network, in the units of `measure`."""

    network: Callable[[], nn.Module]
    calibration: Callable[[int], Tensor]
    score: Callable[[nn.Module], float]
    measure: str
    budgets: tuple[str, ...]
    batch: int = 1  # of the example that is timed
    training: Callable[[], Tensor] | None = None  # all examples that a converted network may be trained on
    most_shift: int = 0  # by which they may be moved


@cache
def imported(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # so that a saved network of its classes can be opened again
    spec.loader.exec_module(module)
    return module


@torch.inference_mode()
def batched(network: nn.Module, x: Tensor, size: int) -> Tensor:
    return torch.cat([network(some) for some in x.split(size)])


def cifar10(split: str) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32] in bytes, and labels [N]."""
    images, labels = imported(DATA / "cifar10" / "unpack.py").arrays(split)
    return torch.from_numpy(images), torch.from_numpy(labels)


def prepared(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(preprocess[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (images.float() / 255 - mean) / std


def trained_resnet20() -> nn.Module:
    network = resnet20()
    network.load_state_dict(load_file(DATA / "cifar10" / "resnet20.safetensors"))
    return network.eval()


def cifar10_drawn(seed: int) -> Tensor:
    return prepared(drawn(cifar10("train")[0], seed))


def drawn(x: Tensor, seed: int) -> Tensor:
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:1024]]


def percent_right(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    return 100 * float((batched(network, x, 500).argmax(1) == labels).double().mean())


def top1(network: nn.Module) -> float:
    images, labels = cifar10("test")
    return percent_right(network, prepared(images), labels)


@cache
def vocabulary() -> list[str]:
    """Words of the news, in an order drawn once: the first half for calibration, the others unseen."""
    with lzma.open(DATA / "conll2003" / "eng.train.xz", "rt") as lines:
        words = sorted(
            {word for line in lines if (word := line.split(" ")[0].strip()).isalpha() and 1 < len(word) < 12}
        )
    random.Random(0).shuffle(words)
    return words


def drawn_words(number: int, seed: int, seen: bool) -> Tensor:
    words = vocabulary()
    half = len(words) // 2
    return imported(NETS).words(number, 256, seed, words[:half] if seen else words[half:])


@cache
def text_detector() -> nn.Module:
    return imported(NETS).craft(CACHE)


def text_map_overlap(network: nn.Module) -> float:
    """Intersection over union of the text map at 0.4 with the dense network's, on 64 unseen images."""
    images = drawn_words(64, 1000, seen=False)
    found, wanted = (batched(one, images, 8)[..., 0] > 0.4 for one in (network, text_detector()))
    return float((found & wanted).sum() / (found | wanted).sum())


@cache
def pitch_tracker() -> nn.Module:
    network = imported(NETS).crepe(CACHE)
    shell = type(sys)(type(network).__module__)  # so that a saved copy can be opened again
    setattr(shell, type(network).__name__, type(network))
    sys.modules[shell.__name__] = shell
    return network


@cache
def voices() -> list[np.ndarray]:
    """Spoken digits at 16 kHz, in an order drawn once."""
    found = []
    with tarfile.open(DATA / "fsdd" / "fsdd_recordings.tar.xz", "r:xz") as archive:
        for member in archive:
            if member.name.endswith(".wav"):
                with wave.open(io.BytesIO(archive.extractfile(member).read())) as sound:
                    samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16).astype(np.float32) / 32768
                found.append(
                    F.interpolate(torch.from_numpy(samples)[None, None], scale_factor=2.0, mode="linear")[0, 0].numpy()
                )
    random.Random(0).shuffle(found)
    return found


def frames(number: int, seed: int, seen: bool) -> Tensor:
    """[N, 1024], one of each recording, each of mean 0 and deviation 1."""
    sounds = [sound for sound in voices() if len(sound) > 2048]
    half, rng, found = len(sounds) // 2, random.Random(seed), []
    for sound in rng.sample(sounds[:half] if seen else sounds[half:], number):
        at = rng.randrange(512, len(sound) - 1024)
        frame = sound[at : at + 1024]
        found.append((frame - frame.mean()) / max(frame.std(), 1e-10))
    return torch.from_numpy(np.stack(found))


def pitch_agreement(network: nn.Module) -> float:
    """Share of 1,024 unseen frames that the dense network is sure of whose pitch is within two bins of its."""
    x = frames(1024, 1000, seen=False)
    found, wanted = (batched(one, x, 64) for one in (network, pitch_tracker()))
    sure = wanted.amax(1) > 0.5
    return float(((found.argmax(1) - wanted.argmax(1)).abs() <= 2)[sure].double().mean())


def trained(name: str, network: nn.Module, x: Tensor, labels: Tensor, epochs: int, most_shift: int) -> nn.Module:
    """The network, trained once: AdamW under a one-cycle rate, each batch shifted by some pixels or samples."""
    file = CACHE / f"{name}.safetensors"
    if not file.exists():
        torch.manual_seed(0)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        parts = len(x) // 128
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * parts)
        network.train()
        for epoch in range(epochs):
            for some in track(torch.randperm(len(x)).tensor_split(parts), f"{name}, epoch {epoch + 1} of {epochs}"):
                loss = F.cross_entropy(network(shifted(x[some], most_shift)), labels[some], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        with atomic.write_beside(file) as beside:
            save_file(network.state_dict(), beside)
    network.load_state_dict(load_file(file))
    return network.eval()


def shifted(x: Tensor, most: int) -> Tensor:
    """x [N, C, ...] moved by as much as `most` in each dimension, its border repeated."""
    moved = F.pad(x, [most] * (2 * (x.ndim - 2)), mode="replicate")
    for dim, size in enumerate(x.shape[2:], 2):
        moved = moved.narrow(dim, int(torch.randint(2 * most + 1, ())), size)
    return moved


class Shuffled:
    """Batches of an epoch: every example once, in a new order, each batch changed as when the network was trained."""

    def __init__(self, x: Tensor, change: Callable[[Tensor], Tensor]):
        self.x, self.change = x, change

    def __len__(self) -> int:
        return math.ceil(len(self.x) / BATCH)

    def __iter__(self) -> Iterator[Tensor]:
        for some in torch.randperm(len(self.x)).tensor_split(len(self)):
            yield self.change(self.x[some])


@cache
def fashion(split: str) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 28, 28] of mean 0 and deviation 1, and labels [N]."""
    file = idx.choose(FASHION, idx.find(FASHION), split)
    images = torch.from_numpy(idx.read_images(file).copy())
    labels = torch.from_numpy(idx.read_labels(file, len(images)).copy()).long()
    return (images.unsqueeze(1).float() / 255 - 0.2860) / 0.3530, labels


def block(dims: int, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)
    same = conv(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return [same, norm(out_channels), nn.ReLU()]


def vgg() -> nn.Sequential:
    """Six 3x3 convolutions in pairs (Simonyan and Zisserman 2014), here with norms, and a mean at the end."""
    return nn.Sequential(
        *block(2, 1, 24, 3), *block(2, 24, 24, 3), nn.MaxPool2d(2),
        *block(2, 24, 48, 3), *block(2, 48, 48, 3), nn.MaxPool2d(2),
        *block(2, 48, 96, 3), *block(2, 96, 96, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


def listener() -> nn.Sequential:
    """Five 1-D convolutions on a waveform of one second, the first of them its filters (Dai et al. 2016)."""
    return nn.Sequential(
        *block(1, 1, 32, 65, stride=8), nn.MaxPool1d(2),
        *block(1, 32, 48, 9, stride=2), *block(1, 48, 48, 9), nn.MaxPool1d(2),
        *block(1, 48, 64, 9), *block(1, 64, 64, 9), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


@cache
def trained_vgg() -> nn.Module:
    return trained("vgg_fashion", vgg(), *fashion("train"), epochs=3, most_shift=1)


@cache
def trained_listener() -> nn.Module:
    return trained("spoken_digits", listener(), *spoken("train"), epochs=25, most_shift=800)


@cache
def spoken(split: str) -> tuple[Tensor, Tensor]:
    """One second at 8 kHz of each recording [N, 1, 8000], of deviation 1; takes 0 to 9 of each speaker are the test."""
    x, labels = [], []
    with tarfile.open(DATA / "fsdd" / "fsdd_recordings.tar.xz", "r:xz") as archive:
        for member in sorted((member for member in archive if member.name.endswith(".wav")), key=lambda one: one.name):
            digit, _, take = Path(member.name).stem.split("_")
            if (int(take) < 10) == (split == "test"):
                with wave.open(io.BytesIO(archive.extractfile(member).read())) as sound:
                    samples = np.frombuffer(sound.readframes(min(sound.getnframes(), 8000)), np.int16)
                second = torch.from_numpy(samples / max(samples.std(), 1.0)).float()
                x.append(F.pad(second, (0, 8000 - len(second))))
                labels.append(int(digit))
    return torch.stack(x).unsqueeze(1), torch.tensor(labels)


NETWORKS = {
    "resnet20": Dense(
        trained_resnet20, cifar10_drawn, top1, "top-1 %, 10,000 test images",
        ("macs=0.60", "macs=0.45", "macs=0.30", "macs=0.16", "latency=0.7", "latency=0.5"),
        training=lambda: prepared(cifar10("train")[0]), most_shift=4,
    ),
    "resnet20, batch 64": Dense(
        trained_resnet20, cifar10_drawn, top1, "top-1 %, 10,000 test images", ("latency=0.7", "latency=0.5"), 64
    ),
    "craft": Dense(
        text_detector, lambda seed: drawn_words(32, seed, seen=True), text_map_overlap, "overlap of text maps",
        ("macs=0.50", "macs=0.35", "macs=0.25", "latency=0.5"),
    ),
    "crepe": Dense(
        pitch_tracker, lambda seed: frames(512, seed, seen=True), pitch_agreement, "agreement of sure frames",
        ("macs=0.30", "macs=0.15", "macs=0.08", "latency=0.15"), 16,
    ),
    "vgg, fashion": Dense(
        trained_vgg, lambda seed: drawn(fashion("train")[0], seed), lambda net: percent_right(net, *fashion("test")),
        "top-1 %, 10,000 test images", ("macs=0.50", "macs=0.25", "macs=0.12", "latency=0.5"),
        training=lambda: fashion("train")[0], most_shift=1,
    ),
    "spoken digits": Dense(
        trained_listener, lambda seed: drawn(spoken("train")[0], seed), lambda net: percent_right(net, *spoken("test")),
        "right %, 600 test recordings", ("macs=0.50", "macs=0.25", "macs=0.12", "latency=0.5"),
        training=lambda: spoken("train")[0], most_shift=800,
    ),
}  # fmt: skip
