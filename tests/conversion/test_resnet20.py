"""A real trained network on real images: what conversion promises, pinned a little below what was measured."""

import pytest
import torch

import real_data
from separable.conversion import convert


@pytest.mark.data
@pytest.mark.usefixtures("untimed")
def test_resnet20_keeps_its_accuracy_at_three_tenths_of_its_work():
    """256 training images, no gradient step, the first 2,000 test images; the dense network has 91.75 % there."""
    trained = real_data.TrainedResNet20()
    train, (test, labels) = trained.images("train")[0], trained.images("test")
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:256]
    done = convert(trained.network(), trained.prepared(train[chosen.numpy()]), {"macs": 0.3}, target="torch")
    assert done.macs_before == 40_551_040
    assert done.macs_after <= 0.3 * done.macs_before
    x = trained.prepared(test[:2000])
    with torch.inference_mode():
        right = [
            int((done.model(a).argmax(1) == b).sum())
            for a, b in zip(x.split(500), labels[:2000].split(500), strict=True)
        ]
    assert sum(right) / 2000 >= 0.86, sum(right)
