"""Preparation against torchvision's transforms and timm's, pixel for pixel, and recognised from functions."""

import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from separable.data import Preparation
from separable.errors import InputError
from separable.models.sources import import_timm, import_torchvision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def transforms():
    import_torchvision()
    from torchvision import transforms

    return transforms


def picture(width, height, mode="RGB", seed=0):
    """Smooth colours with edges: resampling rules and crops all show in it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.NEAREST).convert(mode)


SHAPES = [(64, 64), (75, 50), (50, 75), (33, 100), (20, 24), (31, 17)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_torchvision_bit_for_bit(transforms, interpolation, shape):
    image = picture(*shape)
    mode = transforms.InterpolationMode(interpolation)
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    for scaled, size in [(32, 32), (37, 32), (41, 28)]:
        theirs = transforms.Compose([transforms.Resize(scaled, mode), transforms.CenterCrop(size), *end])
        ours = Preparation((size, size), "shortest", size / scaled, interpolation, MEAN, STD)
        assert torch.equal(ours(image), theirs(image))
    theirs = transforms.Compose([transforms.Resize((24, 40), mode), *end])
    assert torch.equal(Preparation((24, 40), "squash", 1.0, interpolation, MEAN, STD)(image), theirs(image))
    assert torch.equal(Preparation(mean=MEAN, std=STD)(image), transforms.Compose(end)(image))


def test_grey_equals_torchvision(transforms):
    image = picture(40, 28, "L")
    theirs = transforms.Compose([transforms.Resize(28), transforms.CenterCrop(28), transforms.ToTensor()])
    assert torch.equal(Preparation.from_settings({"size": 28, "channels": 1})(image), theirs(image))


@pytest.mark.parametrize(
    ("crop_pct", "crop_mode"), [(0.875, "center"), (0.95, "center"), (0.965, "squash"), (1.0, "center")]
)
@pytest.mark.parametrize("size", [(96, 96), (64, 96), (224, 224)], ids=str)
def test_equals_timm_for_its_own_config(crop_pct, crop_mode, size):
    timm = import_timm()
    config = {"input_size": (3, *size), "interpolation": "bicubic", "mean": MEAN, "std": STD}
    config |= {"crop_pct": crop_pct, "crop_mode": crop_mode}
    theirs = timm.data.create_transform(**config)
    ours = Preparation.from_timm(config)
    for shape in [(300, 200), (200, 300), (120, 120)]:
        assert torch.equal(ours(picture(*shape)), theirs(picture(*shape)))


def test_scaled_sizes_are_timms_for_all_its_weights_and_torchvisions_for_every_crop():
    timm = import_timm()
    configs = [timm.models.get_pretrained_cfg(name) for name in timm.list_models(pretrained=True)]
    assert len(configs) > 1000
    for config in configs:
        for side in config.input_size[1:]:
            assert math.floor(side / config.crop_pct + 1e-6) == math.floor(side / config.crop_pct)
    for size in (28, 32, 96, 160, 224, 240, 299, 384):
        for scaled in range(size, 2 * size):
            assert math.floor(size / (size / scaled) + 1e-6) == scaled


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_image_becomes_a_tensor(mode, channels):
    grey = picture(12, 10, "L")
    if mode.startswith("I"):
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        image = image if mode == "I;16" else image.convert("I")
    else:
        image = grey.convert(mode)
    x = Preparation(channels=channels, mean=(0.0,), std=(1.0,))(image)
    assert x.shape == (channels, 10, 12)
    if mode not in ("1", "CMYK"):  # two colours only; subtractive
        assert (x - torch.from_numpy(np.asarray(grey) / 255.0)).abs().max() < 0.02


def test_alpha_is_dropped_not_blended():
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert torch.equal(Preparation()(image)[:, 0, 0] * 255, torch.tensor([200.0, 100.0, 50.0]))


def test_orientation_noted_by_a_camera_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    file = io.BytesIO()
    picture(8, 4).save(file, "JPEG", exif=exif)
    assert Preparation()(Image.open(file)).shape == (3, 4, 8)


def test_settings_survive_json():
    p = Preparation((24, 32), "squash", 0.9, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preparation.from_json(json.loads(json.dumps(p.to_json()))) == p


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size = 0"),
        ({"size": (3, 32, 32)}, "two as (height, width)"),
        ({"size": True}, "size"),
        ({"size": (32, 16385)}, "size = (32, 16385): must be at most 16,384 pixels a side"),
        ({"resize": "stretch"}, "must be one of shortest, squash"),
        ({"interpolation": "random"}, "must be one of bilinear, bicubic, nearest"),
        ({"mean": [0.5, 0.5, 0.5, 0.5]}, "channels = 4: must be one of 1, 3"),
        ({"mean": [0.1, 0.2], "channels": 3}, "one number for each of the 3 channels"),
        ({"std": [0.1, 0.0, 0.1]}, "must be above 0"),
        ({"mean": float("nan")}, "must be a number"),
        ({"crop_fraction": 1.2}, "at most 1"),
        ({"crop_fraction": 1e-6, "size": 32}, "crop_fraction = 1e-06: scales images above 16,384 pixels a side"),
        ({"crop_mode": "border"}, "crop_mode = border"),
        ({"means": 0.5}, "means: is no setting; there are"),
        ([32], "must be a dict"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(InputError) as told:
        Preparation.from_settings(settings)
    assert message in str(told.value)


def test_floating_point_pixels_have_no_agreed_range():
    with pytest.raises(ValueError, match="floating point"):
        Preparation()(Image.new("F", (4, 4)))


PHOTOS = [picture(100, 80, seed=1), picture(64, 90, seed=2), picture(70, 70, seed=3)]


def functions(transforms):
    end, settings = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)], {"mean": MEAN, "std": STD}
    bicubic = transforms.InterpolationMode.BICUBIC

    def by_hand(image):
        pixels = np.asarray(image.convert("RGB").resize((20, 16), Image.Resampling.BILINEAR), dtype=np.float32)
        return torch.from_numpy((pixels - 127.5) / 127.5).permute(2, 0, 1)

    return [
        (transforms.Compose(end), settings),
        (
            transforms.Compose([transforms.Resize((32, 32)), *end]),
            {"size": 32, "resize": "squash", **settings},
        ),
        (
            transforms.Compose([transforms.Resize(40, bicubic), transforms.CenterCrop(35), *end]),
            {"size": 35, "crop_fraction": 0.875, "interpolation": "bicubic", **settings},
        ),
        (
            transforms.Compose([transforms.Resize(43), transforms.CenterCrop(32), transforms.ToTensor()]),
            {"size": 32, "crop_fraction": 32 / 43},
        ),
        (by_hand, {"size": (16, 20), "resize": "squash", "mean": 0.5, "std": 0.5, "channels": 3}),
    ]


@pytest.mark.parametrize("which", range(5))
def test_a_function_is_recognised_as_settings(transforms, which):
    function, settings = functions(transforms)[which]
    assert Preparation.recognize(function, PHOTOS) == Preparation.from_settings(settings)


def test_a_function_for_grey_images_is_recognised(transforms):
    function = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    digits = [picture(28, 28, "L", seed) for seed in range(3)]
    assert Preparation.recognize(function, digits) == Preparation.from_settings({"mean": 0.1307, "std": 0.3081})


def test_a_function_for_colour_is_recognised_where_a_grey_image_comes_first(transforms):
    function = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    found = Preparation.recognize(function, [picture(30, 30, "L"), *PHOTOS])
    assert found == Preparation(mean=MEAN, std=STD)


def test_a_function_for_one_size_alone_is_recognised_on_that_size(transforms):
    def only_28(image):
        assert image.size == (28, 28)
        return transforms.ToTensor()(image)

    digits = [picture(28, 28, "L", seed) for seed in range(3)]
    found = Preparation.recognize(only_28, digits)
    assert all(torch.equal(found(image), only_28(image)) for image in digits)


def test_what_settings_cannot_say_is_refused_with_the_way_out(transforms):
    swapped = transforms.Compose([transforms.ToTensor(), lambda x: x.flip(0)])
    curved = transforms.Compose([transforms.ToTensor(), torch.sqrt])
    for function in (swapped, curved):
        with pytest.raises(InputError, match="no settings describe; write preprocess as a dict"):
            Preparation.recognize(function, PHOTOS)


def test_a_function_that_fails_or_gives_no_image_is_refused_with_its_reason():
    def fails(image):
        raise KeyError("missing")

    with pytest.raises(InputError, match=r"fails: KeyError: 'missing'"):
        Preparation.recognize(fails, PHOTOS)
    with pytest.raises(InputError, match=r"must give a float tensor \[1 or 3, H, W\], not torch.uint8 \[80, 100, 3\]"):
        Preparation.recognize(lambda image: torch.from_numpy(np.array(image)), PHOTOS)
