"""A real trained network on real images: what conversion promises, pinned a little below what was measured."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import real_data
from separable.conversion import convert

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def imported(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.data
def test_resnet20_keeps_its_accuracy_at_six_tenths_of_its_work():
    """512 training images, no gradient step, the first 2,000 test images; the dense network has 91.75 % there."""
    pytest.importorskip("PIL")
    folder, net = real_data.folder("cifar10"), imported(BENCHMARKS / "resnet20.py")
    unpack = imported(folder / "unpack.py")
    mean, std = (torch.tensor(net.preprocess[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    train, _ = unpack.arrays("train")
    test, labels = unpack.arrays("test")
    dense = net.resnet20()
    dense.load_state_dict(load_file(folder / "resnet20.safetensors"))
    dense.eval()
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:512]
    done = convert(dense, (torch.from_numpy(train[chosen.numpy()]).float() / 255 - mean) / std, {"macs": 0.6})
    assert done.macs_before == 40_551_040
    assert done.macs_after <= 0.6 * done.macs_before
    x = (torch.from_numpy(test[:2000]).float() / 255 - mean) / std
    with torch.inference_mode():
        right = [
            int((done.model(a).argmax(1) == b).sum())
            for a, b in zip(x.split(500), torch.from_numpy(labels[:2000]).split(500), strict=True)
        ]
    assert sum(right) / 2000 >= 0.895
