"""A real trained network on real images decides as before; over all 10,000, bfloat16 was 0.02 points from float32."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import real_data
from separable import _native, accelerate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def imported(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.data
@torch.inference_mode()
def test_resnet20_decides_as_before():
    """The first 2,000 test images, of which the network in float32 has 91.75 % right."""
    pytest.importorskip("PIL")
    folder, net = real_data.folder("cifar10"), imported(BENCHMARKS / "resnet20.py")
    mean, std = (torch.tensor(net.preprocess[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    images, labels = imported(folder / "unpack.py").arrays("test")
    x = (torch.from_numpy(images[:2000]).float() / 255 - mean) / std
    network = net.resnet20()
    network.load_state_dict(load_file(folder / "resnet20.safetensors"))
    network.eval()

    def decisions(run):
        return torch.cat([run(batch).argmax(1) for batch in x.split(500)])

    expected, truth = decisions(network), torch.from_numpy(labels[:2000])
    right = (expected == truth).sum()
    exact = decisions(accelerate(network))
    assert (exact == expected).sum() >= 1999  # one may stand on the edge
    if _native.has_bfloat16():
        rounded = decisions(accelerate(network, dtype=torch.bfloat16))
        assert abs(int((rounded == truth).sum()) - int(right)) <= 4  # images; measured: 3
