"""Weights carried to and from timm: the same outputs, and the same step of training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norms import lived_in
from separable import models
from separable.errors import InputError

KINDS = {
    "mobilenetv1_100": models.MobileNetV1,
    "mobilenetv2_100": models.MobileNetV2,
    "mobilenetv3_large_100": models.MobileNetV3Large,
    "mobilenetv3_small_100": models.MobileNetV3Small,
    "legacy_xception": models.Xception,
}
every_name = pytest.mark.parametrize("name", KINDS)


def timm_network(name, **options):
    return lived_in(models.import_timm().create_model(name, **options))


@every_name
def test_ours_from_timm_s_gives_the_same_outputs(name):
    theirs = timm_network(name).double().eval()
    ours = models.from_timm(theirs).double().eval()
    assert type(ours) is KINDS[name]
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 1e-6
        torch.testing.assert_close(ours(x), expected)


@every_name
def test_timm_s_from_ours_gives_the_same_outputs(name):
    ours = KINDS[name](num_classes=7).double().eval()
    theirs = models.import_timm().create_model(name, num_classes=7).double().eval()
    theirs.load_state_dict(models.to_timm(ours), strict=True)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x))


@every_name
def test_there_and_back_changes_nothing(name):
    ours = KINDS[name](num_classes=5, in_channels=1)
    back = models.from_timm(models.to_timm(ours)).state_dict()
    assert back.keys() == ours.state_dict().keys()
    for key, value in ours.state_dict().items():
        assert torch.equal(back[key], value), key


@every_name
def test_a_step_of_training_is_the_same(name):
    theirs = timm_network(name, num_classes=4).double().train()
    ours = models.from_timm(theirs).double().train()
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # timm's default
    x, labels = torch.randn(4, 3, 48, 48, dtype=torch.float64), torch.arange(4)
    for network in (theirs, ours):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        F.cross_entropy(network(x), labels).backward()
        optimizer.step()
    stepped, expected = models.to_timm(ours), theirs.state_dict()
    for key in expected:
        torch.testing.assert_close(stepped[key], expected[key], rtol=1e-6, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}")


def test_carried_weights_are_copies():
    theirs = models.import_timm().create_model("mobilenetv3_small_100")
    ours = models.from_timm(theirs)
    before = ours.conv_stem.weight.clone()
    with torch.no_grad():
        theirs.conv_stem.weight.zero_()
    assert torch.equal(ours.conv_stem.weight, before)


def test_refuses_a_network_that_timm_has_not():
    with pytest.raises(InputError, match="network = Linear: must be one of MobileNetV1"):
        models.to_timm(nn.Linear(2, 2))


def test_refuses_another_network_of_timm_s():
    with pytest.raises(InputError, match="must be of timm's mobilenetv1_100"):
        models.from_timm(models.import_timm().create_model("resnet18"))


def test_refuses_another_width_and_says_which_keys():
    narrow = models.import_timm().create_model("mobilenetv2_050")
    with pytest.raises(InputError, match=r"of another shape \(conv_stem.weight \[16, 3, 3, 3\] for \[32, 3, 3, 3\]"):
        models.from_timm(narrow)
