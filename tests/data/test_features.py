"""Log-mel energies and MFCC against direct sums, and as settings."""

import json
import math

import pytest
import torch

from separable.data.features import Features
from separable.errors import InputError


def directly(samples, f):
    """log_mel of [n] by the definition: a Hann window, the Fourier sum at each frequency, triangles in mel."""
    points = 2 ** math.ceil(math.log2(f.window))
    mel = lambda hz: 2595 * math.log10(1 + hz / 700)  # noqa: E731
    hz = lambda m: 700 * (10 ** (m / 2595) - 1)  # noqa: E731
    low, high = mel(f.low_hz), mel(f.high_hz or f.rate / 2)
    edges = [hz(low + (high - low) * i / (f.bands + 1)) for i in range(f.bands + 2)]
    t = torch.arange(f.window, dtype=torch.float64)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * t / f.window)
    rows = []
    for start in range(0, len(samples) - f.window + 1, f.hop):
        frame = samples[start : start + f.window].double() * window
        row = [1e-6] * f.bands
        for k in range(points // 2 + 1):
            turn = 2 * math.pi * k * t / points
            energy = ((frame * turn.cos()).sum() ** 2 + (frame * turn.sin()).sum() ** 2) * 4 / f.window**2
            at = k * f.rate / points
            for b in range(f.bands):
                left, top, right = edges[b : b + 3]
                row[b] += float(energy) * max(0.0, min((at - left) / (top - left), (right - at) / (right - top)))
        rows.append([math.log(value) for value in row])
    return torch.tensor(rows, dtype=torch.float64)


def test_log_mel_is_the_direct_sum():
    features = Features(1000, window_ms=50, hop_ms=20, bands=6, low_hz=30, high_hz=450)
    samples = torch.randn(173, dtype=torch.float64)
    torch.testing.assert_close(features.log_mel(samples[None])[0], directly(samples, features))


def test_mfcc_are_the_first_coefficients_of_the_orthonormal_cosine_transform():
    features = Features(8000, coefficients=10)
    log_mel = torch.randn(2, 5, 40, dtype=torch.float64)
    found = features.finish(log_mel)
    for k in range(10):
        scale = math.sqrt((1 if k == 0 else 2) / 40)
        row = torch.tensor([scale * math.cos(math.pi * (n + 0.5) * k / 40) for n in range(40)], dtype=torch.float64)
        torch.testing.assert_close(found[..., k], log_mel @ row)


def test_a_second_at_the_papers_settings_is_49_by_10():
    for rate in (8000, 16000):
        assert Features(rate, coefficients=10)(torch.zeros(3, rate)).shape == (3, 49, 10)


def test_a_sine_is_heard_in_its_band_with_its_energy():
    features = Features(8000)
    log_mel = features.log_mel(torch.sin(2 * math.pi * 1000 * torch.arange(8000) / 8000)[None])[0]
    edges = torch.linspace(2595 * math.log10(1 + 20 / 700), 2595 * math.log10(1 + 4000 / 700), 42)
    nearest = int((edges[1:-1] - 2595 * math.log10(1 + 1000 / 700)).abs().argmin())
    assert set(log_mel.argmax(1).tolist()) == {nearest}
    assert 0.3 < float(log_mel[0].exp().sum()) < 3
    quiet = features.log_mel(0.1 * torch.sin(2 * math.pi * 1000 * torch.arange(8000) / 8000)[None])[0]
    torch.testing.assert_close(
        log_mel[:, nearest] - quiet[:, nearest], torch.full((49,), math.log(100)), atol=1e-2, rtol=0
    )


def test_frames_do_not_depend_on_what_comes_later():
    features, samples = Features(8000), torch.randn(1, 4000)
    whole, part = features(samples), features(samples[:, :2345])
    torch.testing.assert_close(whole[:, : part.shape[1]], part)
    assert part.shape[1] == 1 + (2345 - 320) // 160


def test_a_sound_shorter_than_a_frame_has_none():
    assert Features(8000)(torch.zeros(2, 319)).shape == (2, 0, 40)
    assert Features(8000, coefficients=10)(torch.zeros(2, 0)).shape == (2, 0, 10)


@pytest.mark.parametrize("coefficients", [0, 10])
def test_fitted_features_have_mean_zero_and_deviation_one(coefficients):
    samples = torch.randn(4, 8000) * torch.linspace(0.1, 1, 4)[:, None]
    features = Features(8000, coefficients=coefficients).fitted(samples)
    flat = features(samples).flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(features.size), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat.std(0), torch.ones(features.size), atol=1e-4, rtol=0)
    again = Features.from_settings(json.loads(json.dumps(features.to_json())))
    assert again == features


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rate": 8000, "hop_ms": 50}, "hop_ms = 50"),
        ({"rate": 8000, "hop_ms": 0}, "hop_ms = 0"),
        ({"rate": 8000, "low_hz": 5000}, "low_hz = 5000"),
        ({"rate": 8000, "high_hz": 5000.0}, "must be below high_hz"),
        ({"rate": 8000, "coefficients": 41}, "coefficients = 41: must be 0 to 40"),
        ({"rate": 8000, "mean": (0.0,)}, "mean = 1: must hold 40 numbers"),
        ({"rate": 8000, "bands": 200}, "bands = 200: are too many"),
        ({"rate": 8000, "size": 3}, "preparation = size: is no set of sound features"),
        ({"bands": 40}, "no rate"),
    ],
)
def test_settings_that_break_a_rule_are_refused(settings, told):
    with pytest.raises(InputError, match=told):
        Features.from_settings(settings)
