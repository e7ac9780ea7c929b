"""How an image becomes the tensor a network was trained on, as plain settings that are saved with the network.

Pixel for pixel what torchvision's Resize, CenterCrop, ToTensor and Normalize make of a PIL image, and timm's evaluation
transform with crop modes "center" and "squash".
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from separable.errors import InputError, need

RESIZE_RULES = ("shortest", "squash")
LARGEST_SIDE = 16_384  # pixels; beyond it one image takes gigabytes
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
_IGNORED = {"input_size", "crop_pct", "crop_mode"}  # timm's words, which become ours


@dataclass(frozen=True)
class Preparation:
    """Resize, crop, scale to 0..1, normalise. Called with a PIL image it gives float32 [channels, H, W].

    Args:
        size: (H, W) of the result, at most 16,384 a side; None leaves the size alone.
        resize: "shortest" scales until the image covers the crop, keeping its aspect, and crops the centre;
            "squash" scales both sides to it.
        crop_fraction: the part of the scaled image's side that the crop keeps (timm's crop_pct), as 224 / 256.
        interpolation: "bilinear", "bicubic" or "nearest", antialiased as PIL does it.
        mean, std: of each channel, for values in 0..1.
        channels: 3 or 1. Grey images become three equal channels, colour ones grey (ITU-R 601); alpha is dropped;
            16-bit grey is scaled to 8 bits.

    The orientation that a camera notes in EXIF is not applied: networks are trained on pixels as stored.

    Raises:
        InputError: a setting breaks one of these rules.

    >>> from PIL import Image
    >>> Preparation((32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)(Image.new("RGB", (64, 48))).shape
    torch.Size([3, 32, 32])
    """

    size: tuple[int, int] | None = None
    resize: str = "shortest"
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channels: int = 3

    def __post_init__(self):
        _one_of("resize", self.resize, RESIZE_RULES)
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        _one_of("channels", self.channels, (1, 3))
        fraction = self.crop_fraction
        if not isinstance(fraction, Real) or not 0 < fraction <= 1:
            raise InputError("crop_fraction", fraction, "must be above 0 and at most 1")
        set_field = object.__setattr__  # frozen for everyone but this method
        set_field(self, "crop_fraction", float(fraction))
        set_field(self, "size", _pair(self.size))
        if self.size is not None and max(self.size) / self.crop_fraction > LARGEST_SIDE:
            rule = f"scales images above {LARGEST_SIDE:,} pixels a side before it crops {self.size}"
            raise InputError("crop_fraction", fraction, rule)
        set_field(self, "mean", _per_channel("mean", self.mean, self.channels))
        set_field(self, "std", _per_channel("std", self.std, self.channels))
        if min(self.std) <= 0:
            raise InputError("std", self.std, "must be above 0 for each channel")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Preparation":
        """From a dict as FILE.py or a JSON file holds it; whatever is not given keeps its default.

        Channels follow from the length of mean or std where "channels" is not given. timm's names are understood too:
        input_size (C, H, W), crop_pct, crop_mode.

        >>> Preparation.from_settings({"size": 28, "mean": 0.1307, "std": 0.3081}).channels
        1
        """
        if not isinstance(settings, Mapping):
            raise InputError("preprocess", settings, 'must be a dict as {"size": 32, "mean": [...], "std": [...]}')
        known = set(cls.__dataclass_fields__)
        unknown = [str(key) for key in settings if key not in known | _IGNORED]
        if unknown:
            raise InputError("preprocess", ", ".join(unknown), f"is no setting; there are {', '.join(sorted(known))}")
        given = {key: value for key, value in settings.items() if key in known}
        if "input_size" in settings:
            channels, *size = settings["input_size"]
            given = {"size": tuple(size), "channels": channels} | given
        if "crop_pct" in settings:
            given.setdefault("crop_fraction", settings["crop_pct"])
        if "crop_mode" in settings:
            _one_of("crop_mode", settings["crop_mode"], ("center", "squash"))
            given.setdefault("resize", "squash" if settings["crop_mode"] == "squash" else "shortest")
        lengths = [_length(given[key]) for key in ("mean", "std") if key in given]
        given.setdefault("channels", max(lengths, default=3))
        return cls(**({"mean": 0.0, "std": 1.0} | given))

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> "Preparation":
        """From what `timm.data.resolve_model_data_config(model)` gives."""
        used = _IGNORED | {"interpolation", "mean", "std"}
        return cls.from_settings({key: value for key, value in config.items() if key in used})

    def to_json(self) -> dict[str, Any]:
        """Plain settings, which `from_json` reads."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "Preparation":
        """The preparation that `to_json` wrote."""
        return cls.from_settings(settings)

    @classmethod
    def recognize(cls, function, images) -> "Preparation":
        """The settings that give the same tensors as `function`; see `recognition.recognize`."""
        from separable.data.recognition import recognize

        return recognize(function, images)

    def __call__(self, image) -> Tensor:
        x = self.pixels(image)
        shape = (self.channels, 1, 1)
        return x.sub_(torch.tensor(self.mean).view(shape)).div_(torch.tensor(self.std).view(shape))

    def pixels(self, image) -> Tensor:
        """The image resized and cropped, float32 [channels, H, W] in 0..1, before mean and std."""
        image = to_mode(image, self.channels)
        if self.size is not None:
            image = self._crop(self._scale(image))
        numpy = need("numpy", "deploy", "to read images")
        x = torch.from_numpy(numpy.array(image))  # [H, W] or [H, W, 3], uint8
        x = x[None] if self.channels == 1 else x.permute(2, 0, 1).contiguous()
        return x.to(torch.float32).div_(255)

    def _scale(self, image):
        assert self.size is not None
        # a hair above keeps 224 / (224 / 232) from falling to 231
        height, width = (math.floor(side / self.crop_fraction + 1e-6) for side in self.size)
        if self.resize == "shortest":
            height, width = _covering(image.height, image.width, height, width)
        if (width, height) == image.size:
            return image
        return image.resize((width, height), _resampling(self.interpolation))

    def _crop(self, image):
        assert self.size is not None
        height, width = self.size
        top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
        return image.crop((left, top, left + width, top + height))


def to_mode(image, channels: int):
    """The image as 8-bit grey or RGB.

    Raises:
        ValueError: its pixels have no agreed range (floating point).
    """
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        numpy = need("numpy", "deploy", "to read images")
        deep = numpy.asarray(image).astype(numpy.float64)
        image = need("PIL.Image", "deploy", "to read images").fromarray(
            numpy.round(deep.clip(0, 65535) / 257).astype(numpy.uint8)
        )
    if image.mode == "F":
        raise ValueError("its pixels are floating point, and nothing says what range they have")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _covering(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """(H, W) of the smallest image of the same aspect that covers the target."""
    if target_height == target_width:  # torchvision.transforms.Resize(int) rounds down
        short, long = min(height, width), max(height, width)
        long = int(target_height * long / short)
        return (target_height, long) if height <= width else (long, target_height)
    ratio = min(height / target_height, width / target_width)  # timm's ResizeKeepRatio rounds to nearest
    return round(height / ratio), round(width / ratio)


def _resampling(interpolation: str):
    image = need("PIL.Image", "deploy", "to read images")
    return getattr(image.Resampling, interpolation.upper())


def _one_of(name: str, value: Any, allowed: tuple) -> None:
    if isinstance(value, bool) or value not in allowed:
        raise InputError(name, value, f"must be one of {', '.join(map(str, allowed))}")


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (list, tuple)) else ()
    if len(pair) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in pair):
        raise InputError("size", size, "must be a whole number of pixels, or two as (height, width)")
    if max(pair) > LARGEST_SIDE:
        raise InputError("size", size, f"must be at most {LARGEST_SIDE:,} pixels a side")
    return pair


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (list, tuple)) else 1


def _per_channel(name: str, value: Any, channels: int) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if len(set(values)) == 1:
        values = values[:1] * channels
    if any(isinstance(v, bool) or not isinstance(v, Real) or not math.isfinite(v) for v in values):
        raise InputError(name, value, "must be a number, or one for each channel")
    if len(values) != channels:
        raise InputError(name, value, f"must hold one number for each of the {channels} channels")
    return tuple(float(v) for v in values)
