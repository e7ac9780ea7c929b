"""Where the real data lies that tests read and the project does not carry; a trained network and its images from it."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

ROOT = Path(os.environ.get("SEPARABLE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def folder(name: str) -> Path:
    """The folder of one data set; the test that asks is skipped, with the reason, where it is missing."""
    found = ROOT / name
    if not found.is_dir():
        pytest.skip(f"real data '{name}' is not here: set SEPARABLE_DATA to the folder that holds it")
    return found


class TrainedResNet20:
    """The ResNet-20 of CIFAR-10 with its released weights, and the images that it knows, prepared for it."""

    def __init__(self) -> None:
        pytest.importorskip("PIL")
        self.folder = folder("cifar10")
        self._code = _imported(Path(__file__).parents[1] / "benchmarks" / "resnet20.py")

    def network(self) -> nn.Module:
        made = self._code.resnet20()
        made.load_state_dict(load_file(self.folder / "resnet20.safetensors"))
        return made.eval()

    def images(self, split: str) -> tuple[Any, Tensor]:
        """Bytes [N, 3, 32, 32] and labels [N] of "train" or "test"."""
        images, labels = _imported(self.folder / "unpack.py").arrays(split)
        return images, torch.from_numpy(labels)

    def prepared(self, images: Any) -> Tensor:
        mean, std = (torch.tensor(self._code.preprocess[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        return (torch.from_numpy(images).float() / 255 - mean) / std


def _imported(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
