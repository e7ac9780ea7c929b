"""Change the sampling rate of a sound by a windowed sinc, in plain torch.

Every output is a weighted sum of the inputs around it; the weights are a sinc that lets pass what both rates can hold,
under a Hann window of a fixed number of zero crossings. For rates that share a large divisor, one strided convolution.
Source: Smith, "Digital Audio Resampling", ccrma.stanford.edu/~jos/resample.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from separable.errors import InputError

_CROSSINGS = 16  # zero crossings of the sinc on each side
_ROLLOFF = 0.95  # of the lower Nyquist frequency; leaves room for the window's slope


def resample(samples: Tensor, rate: int, wanted: int) -> Tensor:
    """[..., n] at `rate` -> [..., ceil(n * wanted / rate)] at `wanted` samples a second; the same tensor if equal.

    Raises:
        InputError: a rate is below 1.

    >>> resample(torch.zeros(2, 441), 44100, 8000).shape
    torch.Size([2, 80])
    """
    for name, value in (("rate", rate), ("wanted", wanted)):
        if value < 1:
            raise InputError(name, value, "must be at least 1 sample a second")
    if rate == wanted or not samples.shape[-1]:
        return samples
    shared = math.gcd(rate, wanted)
    old, new = rate // shared, wanted // shared
    kernel, reach = _kernel(old, new)
    length = math.ceil(samples.shape[-1] * new / old)
    rows = F.pad(samples.reshape(-1, 1, samples.shape[-1]), (reach, reach + old))
    phases = F.conv1d(rows, kernel.to(samples), stride=old)  # [N, new, steps]: every new-th output each
    return phases.transpose(1, 2).reshape(*samples.shape[:-1], -1)[..., :length]


def change_speed(samples: Tensor, percent: int) -> Tensor:
    """Play [..., n] at `percent` of its speed: shorter and higher above 100, longer and lower below."""
    return resample(samples, percent, 100)


def _kernel(old: int, new: int) -> tuple[Tensor, int]:
    """Weights [new, 1, taps], and how many inputs lie before the first."""
    cutoff = min(old, new) / old * _ROLLOFF  # in half cycles an input sample
    reach = math.ceil(_CROSSINGS / cutoff)
    taps = torch.arange(-reach, reach + old, dtype=torch.float64)  # inputs, seen from the first of a group of `old`
    places = torch.arange(new, dtype=torch.float64) * old / new  # outputs, likewise
    distance = (taps[None] - places[:, None]) * cutoff  # in zero crossings
    window = torch.cos(distance.clamp(-_CROSSINGS, _CROSSINGS) * math.pi / _CROSSINGS / 2) ** 2
    return (torch.sinc(distance) * window * cutoff)[:, None], reach
