"""Networks: the sizes the papers and timm give, small images, tracing and export, and that they learn."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from separable.errors import InputError
from separable.layers import DepthwiseConv2d, SeparableConv2d
from separable.models import MobileNetV1, MobileNetV2, MobileNetV3Large, MobileNetV3Small, Xception

PARAMETERS = {
    MobileNetV1: 4_231_976,
    MobileNetV2: 3_504_872,
    MobileNetV3Large: 5_483_032,
    MobileNetV3Small: 2_542_856,
    Xception: 22_855_952,
}
MOBILENETS = [MobileNetV1, MobileNetV2, MobileNetV3Large, MobileNetV3Small]
every_network = pytest.mark.parametrize("kind", PARAMETERS, ids=lambda kind: kind.__name__)
every_mobilenet = pytest.mark.parametrize("kind", MOBILENETS, ids=lambda kind: kind.__name__)


@every_network
def test_has_the_parameters_of_its_paper(kind):
    assert sum(parameter.numel() for parameter in kind().parameters()) == PARAMETERS[kind]


def test_a_narrower_network_has_the_parameters_the_paper_prints():
    """Table 6 of the MobileNet paper, in millions."""
    for width, millions in [(0.75, 2.6), (0.5, 1.3), (0.25, 0.5)]:
        parameters = sum(parameter.numel() for parameter in MobileNetV1(width_multiplier=width).parameters())
        assert parameters / 1e6 == pytest.approx(millions, abs=0.05)


@every_network
@pytest.mark.parametrize(("size", "channels", "reduction"), [(32, 3, 8), (28, 1, 32)])
def test_takes_small_images(kind, size, channels, reduction):
    network = kind(num_classes=10, in_channels=channels, reduction=reduction).eval()
    with torch.no_grad():
        assert network(torch.randn(1, channels, size, size)).shape == (1, 10)


@every_mobilenet
@pytest.mark.parametrize("reduction", [1, 4, 8, 16, 32])
def test_reduction_is_how_much_smaller_the_last_maps_are(kind, reduction):
    network = kind(num_classes=2, width_multiplier=0.25, reduction=reduction)
    sizes = []
    network.blocks.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    network(torch.randn(2, 3, 32, 32))
    assert sizes == [(32 // reduction, 32 // reduction)]


@every_network
def test_the_same_weights_fit_every_reduction(kind):
    kind(num_classes=2, reduction=4).load_state_dict(kind(num_classes=2).state_dict(), strict=True)


@every_network
def test_is_traced_around_our_layers_and_exported_with_a_free_batch(kind):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, (SeparableConv2d, DepthwiseConv2d)) or super().is_leaf_module(module, name)

    network = kind(num_classes=10).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        traced = torch.fx.GraphModule(network, Tracer().trace(network))
        torch.testing.assert_close(traced(x), expected)
        free = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(network, (x[:2],), dynamic_shapes=free).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-5)


@every_mobilenet
def test_signal_neither_dies_nor_explodes_at_the_start(kind):
    network = kind(num_classes=10)
    deviations = []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, DepthwiseConv2d)):
            module.register_forward_hook(lambda m, i, output: deviations.append(output.std().item()))
    network(torch.randn(4, 3, 64, 64))
    assert min(deviations) > 0.01
    assert max(deviations) < 100


def test_a_depthwise_filter_starts_as_large_as_a_dense_one_of_one_channel():
    weights = MobileNetV1().blocks[4][1].conv_dw.weight
    assert weights.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


@every_network
def test_learns_a_batch_by_heart(kind):
    options = {} if kind is Xception else {"width_multiplier": 0.25, "reduction": 8}
    network = kind(num_classes=4, **options)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(3 if kind is Xception else 9):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: MobileNetV1(num_classes=0), "num_classes"),
        (lambda: MobileNetV2(in_channels=-3), "in_channels"),
        (lambda: MobileNetV3Small(width_multiplier=0.0), "width_multiplier"),
        (lambda: MobileNetV3Large(width_multiplier=float("nan")), "width_multiplier"),
        (lambda: Xception(reduction=3), "reduction"),
        (lambda: MobileNetV1(reduction=64), "reduction"),
        (lambda: MobileNetV1(reduction=0), "reduction"),
    ],
)
def test_refuses_by_name(make, argument):
    with pytest.raises(InputError, match=argument):
        make()
