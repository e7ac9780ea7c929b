"""Whole networks of the field and our own through save and load: equal in evaluation, and bit for bit in training."""

import io
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import real_data
from separable import models, store
from separable.data import Preparation, open_images
from separable.export import export_onnx
from separable.layers import blocks

EXAMPLE = torch.zeros(1, 3, 64, 64)


def timm(name):
    return models.import_timm().create_model(name)


def torchvision(name):
    return models.import_torchvision().models.get_model(name, weights=None)


NETWORKS = {
    "timm resnet18": lambda: timm("resnet18"),
    "timm mobilenetv3_small_100": lambda: timm("mobilenetv3_small_100"),
    "timm efficientnet_b0": lambda: timm("efficientnet_b0"),
    "timm convnext_atto": lambda: timm("convnext_atto"),
    "torchvision resnet18": lambda: torchvision("resnet18"),
    "torchvision regnet_x_400mf": lambda: torchvision("regnet_x_400mf"),  # names with a hyphen
    "torchvision shufflenet": lambda: torchvision("shufflenet_v2_x0_5"),
    "MobileNetV1": models.MobileNetV1,
    "MobileNetV2": models.MobileNetV2,
    "MobileNetV3Small": models.MobileNetV3Small,
    "Xception": models.Xception,
    "inverted residual": lambda: nn.Sequential(
        blocks.InvertedResidual(3, 8, expanded_channels=12, stride=2, activation="hard_swish", squeeze_channels=4)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_equal_in_evaluation_and_training(name, tmp_path):
    model = NETWORKS[name]()
    store.save(model, tmp_path / "net", example=EXAMPLE)  # compares in evaluation, at batch 1 and 3
    loaded = store.load(tmp_path / "net")
    assert list(loaded.state_dict()) == list(model.state_dict())
    outputs = []
    for network in (model, loaded):
        network.train()
        torch.manual_seed(0)
        outputs.append(network(torch.randn(2, 3, 64, 64)))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0)
    for key, value in model.state_dict().items():  # running statistics too
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0, msg=key)


class OptionA(nn.Module):
    """He et al. 2015, section 4.2: the shortcut without parameters."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.pad = (outer - inner) // 2

    def forward(self, x):
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(OptionA(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(OptionA(16, 32, 2), OptionA(32, 32, 1), OptionA(32, 32, 1))
        self.layer3 = nn.Sequential(OptionA(32, 64, 2), OptionA(64, 64, 1), OptionA(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


def tar_of_images(path, source, count):
    """The first images of a mosaic of 40 x 50 images of 32 x 32, as class/number.png in a tar."""
    labels = np.load(source / "test_labels.npy")
    mosaic = Image.open(source / "test_00.webp").convert("RGB")
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            top, left = 32 * (i // 50), 32 * (i % 50)
            file = io.BytesIO()
            mosaic.crop((left, top, left + 32, top + 32)).save(file, "PNG")
            info = tarfile.TarInfo(f"test/{labels[i]}/{i:05d}.png")
            info.size = file.tell()
            file.seek(0)
            tar.addfile(info, file)


@pytest.mark.data
def test_a_trained_network_recognises_the_same_real_images_once_loaded(tmp_path):
    source = real_data.folder("cifar10")
    tar_of_images(tmp_path / "images.tar", source, 500)
    model = ResNet20()
    model.load_state_dict(load_file(source / "resnet20.safetensors"))
    preparation = Preparation((32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    store.save(model, tmp_path / "net", example=torch.zeros(1, 3, 32, 32), about={"preparation": preparation})
    export_onnx(model, torch.zeros(1, 3, 32, 32), tmp_path / "net.onnx")  # compares with torch
    kept = Preparation.from_json(store.read_about(tmp_path / "net")["preparation"])
    images = open_images(tmp_path / "images.tar", kept)
    model.eval()
    loaded, right = store.load(tmp_path / "net"), 0
    with torch.no_grad():
        for x, labels in images.batches(250):
            outputs = loaded(x)
            assert torch.equal(outputs, model(x))
            right += int((outputs.argmax(1) == labels).sum())
    assert right / len(images) > 0.89  # 91.73 % of all 10,000
