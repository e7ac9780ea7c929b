"""Networks of other kinds than residual ones, trained on real digits: 1-D with norms, and plain without."""

import copy

import pytest
import torch
from torch import nn

from separable.conversion import convert, factorize
from separable.conversion.calibrate import replace

pytestmark = pytest.mark.usefixtures("one_thread", "untimed")


def plain():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(768, 10),
    )  # fmt: skip


def sequence():
    """Reads an image of 64 pixels as a sequence."""
    return nn.Sequential(
        nn.Flatten(2),
        nn.Conv1d(1, 32, 7, padding=3), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Conv1d(32, 48, 9, stride=2, padding=4), nn.BatchNorm1d(48), nn.GELU(),
        nn.Conv1d(48, 48, 9, padding=8, dilation=2), nn.BatchNorm1d(48), nn.GELU(),
        nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(192, 10),
    )  # fmt: skip


@pytest.mark.parametrize("network", [plain, sequence])
def test_a_seventh_of_the_work_keeps_the_accuracy_where_the_closed_form_loses_it(network):
    """Of 64 images, without a gradient step."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    y = torch.tensor(digits.target)[order]
    torch.manual_seed(0)
    dense = network()
    optimizer = torch.optim.Adam(dense.parameters(), 2e-3)
    for _ in range(10):
        for part in torch.randperm(1300).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(dense(x[part]), y[part]).backward()
            optimizer.step()
    dense.eval()

    def accuracy(net):
        with torch.no_grad():
            return float((net(x[1300:]).argmax(1) == y[1300:]).double().mean())

    done = convert(dense, x[:64], {"macs": 0.15}, target="torch")
    closed = copy.deepcopy(dense)
    for layer in done.layers:
        if layer.form:
            old = closed.get_submodule(layer.name)
            replace(closed, old, factorize(old, layer.form, layer.rank))
    assert done.macs_after <= 0.15 * done.macs_before
    assert accuracy(dense) > 0.97
    assert accuracy(done.model) > accuracy(dense) - 0.03
    assert accuracy(done.model) > accuracy(closed)
