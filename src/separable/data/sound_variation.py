"""Batches of clips in a window of fixed length: as they are, or varied as voices, rooms and microphones vary.

Speeds are made once, ahead of training; place, loudness, noise, the microphone's colour and masks are drawn anew for
each clip of each batch, from torch's global generator, all clips of a batch at once.
Source: Ko et al. 2015, "Audio Augmentation for Speech Recognition" (speed); Park et al. 2019, "SpecAugment",
arXiv:1904.08779 (masks).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.data.resample import change_speed
from separable.errors import InputError
from separable.progress import track


@dataclass(frozen=True)
class Variation:
    """How far clips are varied; a zero leaves something out.

    Args:
        gain_db: loudness, up to this much up or down.
        noise: white to pink noise, from noise_db below the clip to 40 dB lower.
        tilt: change of the log energy at the ends of the spectrum, standard deviation in nats.
        masks: stretches of time, and as many of bands, that are replaced by the clip's mean.
        mask_frames, mask_bands: the longest.
    """

    gain_db: float = 10.0
    noise_db: float = 12.0
    noise: bool = True
    tilt: float = 0.4
    masks: int = 1
    mask_frames: int = 4
    mask_bands: int = 5


class Clipped:
    """Clips of one set at several speeds, all in one tensor.

    Args:
        sounds: each [n], n at least 1; of one longer than the window, its loudest part of that length is kept.
        window: samples of every row of a batch.
        speeds: in percent; the first is that of `whole`.
    """

    def __init__(self, sounds: Sequence[Tensor], window: int, speeds: Sequence[int] = (100,)):
        if window < 1:
            raise InputError("seconds", window, "must be at least one sample")
        if not speeds or min(speeds) < 1:
            raise InputError("speeds", list(speeds), "must be percentages of at least 1")
        self.window, self.count = window, len(sounds)
        steps = track(speeds, "changing speed") if len(speeds) > 1 else speeds
        parts = [loudest(change_speed(x, speed), window) for speed in steps for x in sounds]
        self.flat = torch.cat(parts)
        self.lengths = torch.tensor([len(x) for x in parts]).view(len(speeds), -1)  # [speeds, clips]
        self.starts = (self.lengths.flatten().cumsum(0) - self.lengths.flatten()).view_as(self.lengths)

    def whole(self, numbers: Tensor) -> Tensor:
        """Clips [N] as they are, each in the middle of its window: [N, window]."""
        lengths = self.lengths[0, numbers]
        return self._place(self.starts[0, numbers], lengths, (self.window - lengths) // 2)

    def varied(self, numbers: Tensor, variation: Variation) -> Tensor:
        """Clips [N] at a drawn speed, place, loudness and noise: [N, window]."""
        count = len(numbers)
        speeds = torch.randint(len(self.lengths), (count,))
        lengths = self.lengths[speeds, numbers]
        places = (torch.rand(count) * (self.window - lengths + 1)).long()
        x = self._place(self.starts[speeds, numbers], lengths, places)
        if variation.noise:
            power = x.square().sum(1) / lengths  # of the clip, not of what surrounds it
            below = variation.noise_db + 40 * torch.rand(count)
            x = x + coloured_noise(count, self.window) * (power.sqrt() * 10 ** (-below / 20))[:, None]
        gain = 10 ** ((2 * torch.rand(count, 1) - 1) * variation.gain_db / 20)
        return x * gain

    def _place(self, starts: Tensor, lengths: Tensor, places: Tensor) -> Tensor:
        rows = self.flat.new_zeros(len(starts), self.window)
        for row, start, length, place in zip(rows, starts.tolist(), lengths.tolist(), places.tolist(), strict=True):
            row[place : place + length] = self.flat[start : start + length]
        return rows


def loudest(samples: Tensor, window: int) -> Tensor:
    """The `window` samples in a row of [n] that have the most energy; all, where there are no more."""
    if len(samples) <= window:
        return samples
    total = F.pad(samples.double().square().cumsum(0), (1, 0))
    start = int((total[window:] - total[:-window]).argmax())
    return samples[start : start + window]


def coloured_noise(count: int, samples: int) -> Tensor:
    """[count, samples] of power 1, each row falling by 0 to 3 dB an octave, drawn: white to pink."""
    spectrum = torch.view_as_complex(torch.randn(count, samples // 2 + 1, 2))
    slope = -0.5 * torch.rand(count, 1)  # of the amplitude
    noise = torch.fft.irfft(spectrum * torch.arange(1, spectrum.shape[1] + 1) ** slope, samples)
    return noise / noise.square().mean(1, keepdim=True).sqrt()


def vary_spectrum(log_mel: Tensor, variation: Variation) -> Tensor:
    """Log energies [N, frames, bands] through a drawn microphone, with stretches of time and bands masked."""
    count, frames, bands = log_mel.shape
    across = torch.linspace(-1, 1, bands)
    tilt, bend = (variation.tilt * torch.randn(2, count, 1)).unbind()
    x = log_mel + (tilt * across + bend * (across**2 - 1 / 3))[:, None]
    mean = x.mean((1, 2), keepdim=True)
    for _ in range(variation.masks):
        x = torch.where(_stretches(count, frames, variation.mask_frames)[:, :, None], mean, x)
        x = torch.where(_stretches(count, bands, variation.mask_bands)[:, None], mean, x)
    return x


def _stretches(count: int, length: int, longest: int) -> Tensor:
    """A drawn stretch of 0 to `longest` in each row: bool [count, length]."""
    sizes = torch.randint(min(longest, length) + 1, (count, 1))
    starts = (torch.rand(count, 1) * (length - sizes + 1)).long()
    places = torch.arange(length)
    return (places >= starts) & (places < starts + sizes)
