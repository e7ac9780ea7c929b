"""A norm and the activation after it run in one pass in training, and whoever replaces one of them loses neither."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from separable import layers, models
from separable.acceleration import accelerate

ACTIVATIONS = [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish]


class Named(nn.Sequential):
    """As torchvision's blocks are: a Sequential with an attribute that others read."""

    def __init__(self, *parts: nn.Module):
        super().__init__(*parts)
        self.out_channels = 16


def plain_network() -> nn.Module:
    """Every activation after a norm, in a Sequential inside another, with numbers a norm has seen."""
    torch.manual_seed(0)
    blocks = [nn.Conv2d(3, 16, 1)]
    for kind in ACTIVATIONS:
        blocks.append(Named(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), kind()))
    network = nn.Sequential(*blocks, nn.BatchNorm2d(16), nn.Flatten())
    for _ in range(3):
        network(torch.randn(8, 3, 8, 8) * 2 + 1)
    return network


def images(number: int = 4) -> torch.Tensor:
    return torch.randn(number, 3, 8, 8).to(memory_format=torch.channels_last)


def networks() -> dict[str, nn.Module]:
    small = {"num_classes": 4, "width_multiplier": 0.25}
    return {
        "plain": plain_network(),
        "MobileNetV2": models.MobileNetV2(**small),
        "MobileNetV3Small": models.MobileNetV3Small(**small),
    }


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("trained", [False, True])
def test_synchronized_norms_lose_no_activation(name, trained):
    network = networks()[name]
    network = accelerate(network, training=True) if trained else network
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval()(x)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
        torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_folded_into_its_convolution_loses_no_activation():
    network = accelerate(plain_network(), training=True).eval()
    x = images()
    expected = network(x)
    for block in network[1:5]:
        dense = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        dense.weight = block[0].weight
        block[0], block[1] = fuse_conv_bn_eval(dense.eval(), block[1]), nn.Identity()
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_timms_norms_are_known_to_timms_own_conversion():
    timm = models.import_timm()
    network = timm.create_model("mobilenetv2_035", num_classes=5).eval()
    swapped, x = accelerate(network.train(), training=True).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(swapped(x), network.eval()(x), rtol=1e-4, atol=1e-5)
        converted = timm.layers.convert_sync_batchnorm(swapped)
        torch.testing.assert_close(converted(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("other", [nn.Tanh, nn.Identity])
def test_an_activation_put_in_place_of_another_is_what_runs(other):
    network, x = accelerate(plain_network(), training=True).eval(), images()
    network[1][2] = other()
    plain = plain_network().eval()
    plain[1][2] = other()
    torch.testing.assert_close(network(x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_hook_on_either_sees_what_torch_would_show_it():
    network, plain, x = accelerate(plain_network(), training=True).eval(), plain_network().eval(), images()
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for i, one in enumerate((network, plain)):
        one[1][1].register_forward_hook(lambda module, args, output, i=i: seen[i].append(output.clone()))
        one[2][2].register_forward_hook(lambda module, args, output, i=i: seen[i].append(output.clone()))
        one(x)
    assert len(seen[0]) == 2
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, "pickle"])
def test_copies_and_pickles_run_in_one_pass_with_modules_of_their_own(way):
    network, x = accelerate(plain_network(), training=True), images()
    if way == "pickle":
        written = io.BytesIO()
        torch.save(network, written)
        written.seek(0)
        made = torch.load(written, weights_only=False)
    else:
        made = way(network)
    block = made[1]
    assert type(block) is type(network[1])
    assert isinstance(block, Named)
    assert block.out_channels == 16
    torch.testing.assert_close(made.eval()(x), network.eval()(x))
    if way is not copy.copy:
        block[1].weight.data.zero_()
        assert network[1][1].weight.any()


def test_a_training_step_runs_norm_and_activation_in_one_pass():
    """Of the four pairs and the norm alone, in the operator that takes an activation's number."""
    network = accelerate(plain_network(), training=True).train()
    calls = []
    for module in network.modules():
        if isinstance(module, layers.BatchNorm2d):
            forward = module.forward

            def called(input, activation=None, forward=forward):
                calls.append(activation)
                return forward(input, activation)

            module.forward = called
    network(images())
    assert calls == ["relu", "relu6", "silu", "hard_swish", None]
