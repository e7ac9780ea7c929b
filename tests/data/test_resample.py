"""Another sampling rate: what both rates can hold is kept, what the lower cannot is gone."""

import math

import pytest
import torch

from separable.data.resample import change_speed, resample
from separable.errors import InputError


def sine(hz, rate, seconds=0.5):
    return torch.sin(2 * math.pi * hz * torch.arange(round(rate * seconds), dtype=torch.float64) / rate)


@pytest.mark.parametrize(("rate", "wanted"), [(16000, 8000), (44100, 8000), (8000, 16000), (22050, 16000), (80, 100)])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_a_sine_is_the_sine_of_the_other_rate(rate, wanted, share):
    hz = share * min(rate, wanted) / 2
    found, expected = resample(sine(hz, rate, 80 / 80), rate, wanted), sine(hz, wanted, 80 / 80)
    assert found.shape == expected.shape
    middle = slice(len(found) // 3, 2 * len(found) // 3)
    torch.testing.assert_close(found[middle], expected[middle], atol=2e-3, rtol=0)


def test_what_the_lower_rate_cannot_hold_is_gone():
    found = resample(sine(5000, 16000), 16000, 8000)[500:-500]
    assert found.abs().max() < 2e-3


@pytest.mark.parametrize(("rate", "wanted"), [(3, 2), (2, 3), (44100, 8000), (1, 7), (7, 1)])
@pytest.mark.parametrize("samples", [1, 2, 100, 441])
def test_lengths_round_up(rate, wanted, samples):
    assert resample(torch.zeros(3, 2, samples), rate, wanted).shape == (3, 2, math.ceil(samples * wanted / rate))


def test_equal_rates_and_silence_of_no_length_stay_as_they_are():
    x = torch.randn(5)
    assert resample(x, 8000, 8000) is x
    assert resample(torch.zeros(2, 0), 8000, 16000).shape == (2, 0)


def test_rows_are_resampled_one_by_one():
    x = torch.randn(2, 3, 50)
    torch.testing.assert_close(resample(x, 3, 2)[1, 2], resample(x[1, 2], 3, 2))


def test_faster_is_shorter_and_higher():
    fast = change_speed(sine(400, 8000, 1.0), 125)
    assert len(fast) == 6400
    torch.testing.assert_close(fast[2000:4000], sine(500, 8000, 1.0)[2000:4000], atol=2e-3, rtol=0)


def test_rates_below_one_are_refused():
    with pytest.raises(InputError, match="wanted = 0: must be at least 1"):
        resample(torch.zeros(4), 8000, 0)
