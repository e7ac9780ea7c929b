"""Recognise, by measuring, what a `preprocess` function does to images, so that plain settings can be saved for it.

A function cannot be saved without its code; settings can. Candidates for size, resize rule and interpolation are tried
on the user's own images; for each, mean and std are the least squares line from pixels to what the function gave.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from separable.data.preparation import INTERPOLATIONS, Preparation, to_mode
from separable.errors import InputError, first_line

_CLOSE = 1e-5  # float32 rounding of values of a few units; one step of an 8-bit pixel is hundreds of times more
_FRACTIONS = (1.0, 0.875, 0.9, 0.95, 0.96, 224 / 232, 0.935, 0.965, 0.98, 0.8)
_AT_MOST = 8  # images
_WAY_OUT = 'write preprocess as a dict of settings: {"size": 224, "mean": [...], "std": [...], "crop_fraction": 0.875}'


def recognize(function: Callable[[Any], Tensor], images: Sequence[Any]) -> Preparation:
    """The Preparation that gives what `function` gives, to float32 rounding, on these PIL images.

    Images stretched from the given ones are tried as well, to tell apart resize rules that agree on one shape. Where
    only the given ones fit (a function for one size of image alone), they decide.

    Raises:
        InputError: the function fails on an image, or does something that no settings describe.
    """
    images = list(images)[:_AT_MOST]
    if not images:
        raise InputError("preprocess", _name(function), "cannot be recognised without an image")
    given, outputs = _apply(function, images)
    found = [fitted for p in _candidates(given, outputs) if (fitted := _fit(p, given, outputs)) is not None]
    if not found:
        found = list(_scan(given, outputs))
    if not found:
        raise InputError("preprocess", _name(function), f"does something that no settings describe; {_WAY_OUT}")
    return next((p for p in found if _holds_when_stretched(p, function, given)), found[0])


def _apply(function, images) -> tuple[list[Any], list[Tensor]]:
    """What the function gives for the images as they are stored, or, where it wants RGB, for them as RGB."""
    for prepare in (lambda image: image, lambda image: to_mode(image, 3)):
        inputs = [prepare(image) for image in images]
        try:
            outputs = [function(image) for image in inputs]
        except Exception as error:  # the user's function may fail in any way; the second try's reason is told
            reason = f"{type(error).__name__}: {first_line(error)}"
            continue
        wrong = [y for y in outputs if not _is_image(y)]
        reason = f"must give a float tensor [1 or 3, H, W], not {_describe(wrong[0])}" if wrong else ""
        if not wrong and len({y.shape[0] for y in outputs}) == 1:
            return inputs, [y.detach().double() for y in outputs]
        reason = reason or "gives different numbers of channels for different images"
    raise InputError("preprocess", _name(function), reason)


def _candidates(images, outputs) -> Iterator[Preparation]:
    channels = outputs[0].shape[0]
    plain = Preparation(channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    if all(tuple(y.shape[1:]) == (image.height, image.width) for image, y in zip(images, outputs, strict=True)):
        yield plain
    sizes = {tuple(y.shape[1:]) for y in outputs}
    if len(sizes) > 1:
        return
    plain = replace(plain, size=sizes.pop())
    for interpolation in INTERPOLATIONS:
        for fraction in _FRACTIONS:
            yield replace(plain, interpolation=interpolation, crop_fraction=fraction)
        yield replace(plain, interpolation=interpolation, resize="squash")


def _scan(images, outputs) -> Iterator[Preparation]:
    """Every whole size to scale to, up to 1.6 times the crop; tried last, for crops that no convention names."""
    sizes = {tuple(y.shape[1:]) for y in outputs}
    if len(sizes) > 1:
        return
    channels, height, width = outputs[0].shape
    plain = Preparation((height, width), channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    for scaled in range(min(height, width), math.ceil(1.6 * min(height, width))):
        for interpolation in INTERPOLATIONS:
            p = replace(plain, crop_fraction=min(height, width) / scaled, interpolation=interpolation)
            if _fit(p, images[:1], outputs[:1]) is not None and (fitted := _fit(p, images, outputs)) is not None:
                yield fitted
                return


def _fit(plain: Preparation, images, outputs) -> Preparation | None:
    """`plain` with the mean and std of the best line for each channel, if that line passes through every pixel."""
    pixels = [plain.pixels(image).double() for image in images]
    means, stds = [], []
    for channel in range(plain.channels):
        x = torch.cat([p[channel].flatten() for p in pixels])  # [pixels]
        y = torch.cat([o[channel].flatten() for o in outputs])
        if x.numel() != y.numel() or x.std() < 1e-3:  # one colour alone draws no line
            return None
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        offset = y.mean() - slope * x.mean()
        if slope <= 0 or (slope * x + offset - y).abs().max() > _CLOSE * max(1.0, float(y.abs().max())):
            return None
        means.append(float(-offset / slope))
        stds.append(float(1 / slope))
    exact = replace(plain, mean=tuple(means), std=tuple(stds))
    for digits in (3, 4, 5, 6):  # people write 0.485, and that is what the settings should say
        written = (
            replace(exact, mean=_rounded(means, digits), std=_rounded(stds, digits)) if min(stds) > 1e-3 else exact
        )
        if _agrees(written, images, outputs):
            return written
    return exact if _agrees(exact, images, outputs) else None


def _rounded(values: list[float], digits: int) -> tuple[float, ...]:
    return tuple(round(value, digits) + 0.0 for value in values)


def _agrees(preparation: Preparation, images, outputs) -> bool:
    for image, y in zip(images, outputs, strict=True):
        x = preparation(image).double()
        if x.shape != y.shape or (x - y).abs().max() > _CLOSE * max(1.0, float(y.abs().max())):
            return False
    return True


def _holds_when_stretched(preparation: Preparation, function, images) -> bool:
    for image in images[:2]:
        for width, height in ((1.5, 1.2), (1.1, 1.7)):
            stretched = image.resize((math.ceil(image.width * width), math.ceil(image.height * height)))
            try:
                y = function(stretched)
            except Exception:  # a function for one size of image may refuse all others
                return False
            if not _is_image(y) or not _agrees(preparation, [stretched], [y.double()]):
                return False
    return True


def _is_image(y: Any) -> bool:
    return isinstance(y, Tensor) and y.is_floating_point() and y.dim() == 3 and y.shape[0] in (1, 3) and y.numel() > 0


def _describe(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _name(function) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
