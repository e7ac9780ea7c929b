"""A real trained network on real images decides as before; over all 10,000, bfloat16 was 0.01 points from float32."""

import pytest
import torch

import real_data
from separable import _native, accelerate


@pytest.mark.data
@torch.inference_mode()
def test_resnet20_decides_as_before():
    """The first 2,000 test images, of which the network in float32 has 91.75 % right."""
    trained = real_data.TrainedResNet20()
    network, (images, labels) = trained.network(), trained.images("test")
    x, truth = trained.prepared(images[:2000]), labels[:2000]

    def decisions(run):
        return torch.cat([run(batch).argmax(1) for batch in x.split(500)])

    expected = decisions(network)
    right = (expected == truth).sum()
    exact = decisions(accelerate(network))
    assert (exact == expected).sum() >= 1999  # one may stand on the edge
    if _native.has_bfloat16():
        rounded = decisions(accelerate(network, dtype=torch.bfloat16))
        assert abs(int((rounded == truth).sum()) - int(right)) <= 4  # images; measured: 3
