"""Trained dense networks that `convert.py` makes separable: what calibrates each, and what it is judged on.

Each needs data that the project does not carry: SEPARABLE_DATA is the folder with cifar10/, conll2003/ and fsdd/, and
SEPARABLE_NETS a Python file that gives a text detector and a pitch tracker, `craft(cache)` and `crepe(cache)`, and
draws images of words, `words(number, size, seed, vocabulary)`.
"""

import importlib.util
import io
import lzma
import os
import random
import sys
import tarfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from resnet20 import preprocess, resnet20
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SEPARABLE_DATA") or HERE.parents[1] / "shared" / "data")
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


def imported(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
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
    images = cifar10("train")[0]
    return prepared(images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:1024]])


def top1(network: nn.Module) -> float:
    images, labels = cifar10("test")
    return 100 * float((batched(network, prepared(images), 500).argmax(1) == labels).double().mean())


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


NETWORKS = {
    "resnet20": Dense(
        trained_resnet20, cifar10_drawn, top1, "top-1 %, 10,000 test images",
        ("macs=0.60", "macs=0.45", "macs=0.30", "macs=0.16", "latency=0.7", "latency=0.5"),
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
}  # fmt: skip
