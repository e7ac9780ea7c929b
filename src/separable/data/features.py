"""What a network hears: the log energy of mel bands, or their cosine transform (MFCC), as settings saved with it.

Plain torch on any device. Frames lie inside the sound, none is padded, so that a stream gives the same frames as the
whole.
Source: Davis and Mermelstein 1980 (MFCC); 2595 log10(1 + f / 700) mel, O'Shaughnessy 1987.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from separable.errors import InputError

_FLOOR = 1e-6  # energy added before the logarithm: about -60 dB of a full-scale sine in a band


@dataclass(frozen=True)
class Features:
    """Samples [N, n] of `rate` a second -> float32 [N, frames, size], frames = 1 + (n - window) // hop.

    Args:
        window_ms, hop_ms: length of a frame and from one to the next, under a Hann window.
        bands: triangular, equally wide in mel between low_hz and high_hz (None: half the rate).
        coefficients: of the cosine transform over the bands, the lowest first; 0 leaves the bands' logarithms.
        mean, std: taken off and divided by, of each band or coefficient; empty: neither. `fitted` measures them.

    Raises:
        InputError: a setting breaks one of these rules, or a band is narrower than the spectrum is fine.

    >>> Features(8000, coefficients=10)(torch.zeros(2, 8000)).shape
    torch.Size([2, 49, 10])
    """

    rate: int
    window_ms: float = 40.0
    hop_ms: float = 20.0
    bands: int = 40
    low_hz: float = 20.0
    high_hz: float | None = None
    coefficients: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self):
        top = self.rate / 2 if self.high_hz is None else self.high_hz
        if self.window < 2 or not 1 <= self.hop <= self.window:
            raise InputError(
                "hop_ms", self.hop_ms, f"must be a sample or more and at most window_ms = {self.window_ms}"
            )
        if not 0 <= self.low_hz < top <= self.rate / 2:
            raise InputError("low_hz", self.low_hz, f"must be below high_hz, and that at most {self.rate / 2:g}")
        if not 0 <= self.coefficients <= self.bands:
            raise InputError("coefficients", self.coefficients, f"must be 0 to {self.bands}, the number of bands")
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) not in (0, self.size):
                raise InputError(name, len(getattr(self, name)), f"must hold {self.size} numbers, or none")
        if not bool((self._filters().sum(0) > 0).all()):
            rule = f"are too many for a spectrum of {self.rate / self._points:g} Hz; take fewer, or a longer window"
            raise InputError("bands", self.bands, rule)

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return round(self.rate * self.window_ms / 1000)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return round(self.rate * self.hop_ms / 1000)

    @property
    def size(self) -> int:
        """Numbers of each frame."""
        return self.coefficients or self.bands

    @property
    def _points(self) -> int:
        return 1 << (self.window - 1).bit_length()

    def __call__(self, samples: Tensor) -> Tensor:
        return self.finish(self.log_mel(samples))

    def log_mel(self, samples: Tensor) -> Tensor:
        """[N, n] -> [N, frames, bands]: natural logarithm of each band's energy. A sound below a frame has none."""
        if samples.shape[-1] < self.window:
            return samples.new_zeros(*samples.shape[:-1], 0, self.bands)
        window = torch.hann_window(self.window, dtype=samples.dtype, device=samples.device)
        frames = samples.unfold(-1, self.window, self.hop) * window  # [N, frames, window]
        spectrum = torch.view_as_real(torch.fft.rfft(frames, self._points)).square().sum(-1)  # [N, frames, points/2+1]
        energy = spectrum @ self._filters().to(samples) * (4 / self.window**2)  # a full-scale sine has about 1
        return (energy + _FLOOR).log()

    def finish(self, log_mel: Tensor) -> Tensor:
        """[N, frames, bands] -> [N, frames, size]: cosine transform, mean and deviation, where set."""
        x = log_mel @ self._cosines().to(log_mel) if self.coefficients else log_mel
        if self.mean:
            x = x - x.new_tensor(self.mean)
        return x / x.new_tensor(self.std) if self.std else x

    def fitted(self, samples: Tensor) -> "Features":
        """The same with mean and deviation of [N, n], which should be training data."""
        plain = replace(self, mean=(), std=())
        flat = plain(samples).flatten(0, -2)  # [frames, size]
        std = flat.std(0).clamp(min=1e-3)
        return replace(self, mean=tuple(flat.mean(0).tolist()), std=tuple(std.tolist()))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Features":
        """From what `to_json` gave.

        Raises:
            InputError: a setting is unknown, or breaks a rule.
        """
        unknown = sorted(set(settings) - {entry.name for entry in fields(cls)})
        if unknown or "rate" not in settings:
            raise InputError("preparation", ", ".join(unknown) or "no rate", "is no set of sound features")
        return cls(**settings)

    def _filters(self) -> Tensor:
        """Triangles [points/2+1, bands] over the energy of each frequency."""
        top = self.rate / 2 if self.high_hz is None else self.high_hz
        low, high = (2595 * math.log10(1 + hz / 700) for hz in (self.low_hz, top))
        mel = torch.linspace(low, high, self.bands + 2, dtype=torch.float64)
        edges = 700 * (10 ** (mel / 2595) - 1)  # Hz
        hz = torch.linspace(0, self.rate / 2, self._points // 2 + 1, dtype=torch.float64)[:, None]
        rise = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
        return torch.minimum(rise, fall).clamp(min=0)

    def _cosines(self) -> Tensor:
        """Orthonormal DCT-II [bands, coefficients]."""
        places = (torch.arange(self.bands, dtype=torch.float64) + 0.5)[:, None]
        table = torch.cos(math.pi / self.bands * places * torch.arange(self.coefficients)) * math.sqrt(2 / self.bands)
        table[:, :1] /= math.sqrt(2)
        return table
