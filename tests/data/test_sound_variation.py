"""Clips in their window, as they are and varied: what stays, what changes, and how far."""

import pytest
import torch

from separable.data.sound_variation import Clipped, Variation, coloured_noise, loudest, vary_spectrum
from separable.errors import InputError

STILL = Variation(gain_db=0, noise=False, tilt=0, masks=0)


def sounds():
    return [torch.full((n,), float(i + 1)) for i, n in enumerate((5, 10, 30))]


def test_clips_stand_in_the_middle_of_their_window():
    clipped = Clipped(sounds(), 10)
    rows = clipped.whole(torch.tensor([0, 2, 1, 0]))
    assert rows[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert rows[1].tolist() == [3] * 10
    assert rows[2].tolist() == [2] * 10
    assert torch.equal(rows[3], rows[0])


def test_of_a_long_clip_the_loudest_part_is_kept():
    x = torch.zeros(100)
    x[60:70] = torch.arange(10) - 4.5
    assert torch.equal(loudest(x, 10), x[60:70])
    assert torch.equal(loudest(x, 100), x)
    assert loudest(x, 200) is x


def test_without_variation_only_the_place_changes():
    clipped = Clipped(sounds(), 20)
    rows = clipped.varied(torch.zeros(200, dtype=torch.long), STILL)
    assert torch.equal(rows.sum(1), torch.full((200,), 5.0))
    starts = rows.argmax(1)
    assert (int(starts.min()), int(starts.max())) == (0, 15)
    for row, start in zip(rows, starts, strict=True):
        assert torch.equal(row[start : start + 5], torch.ones(5))


def test_speeds_are_drawn_from_those_given():
    clipped = Clipped([torch.ones(100)], 200, (100, 50, 200))
    rows = clipped.varied(torch.zeros(60, dtype=torch.long), STILL)
    assert {50, 100, 200} == {int((row != 0).sum()) for row in rows}
    assert (clipped.whole(torch.tensor([0])) != 0).sum() == 100


def test_noise_and_loudness_keep_to_their_bounds():
    clipped = Clipped([torch.randn(4000)], 8000)
    numbers = torch.zeros(300, dtype=torch.long)
    torch.manual_seed(1)
    still = clipped.varied(numbers, STILL)
    power = still.square().sum(1) / 4000
    torch.manual_seed(1)
    noisy = clipped.varied(numbers, Variation(gain_db=0, noise_db=10))
    below_db = 10 * torch.log10(power / (noisy - still).square().mean(1))
    assert 10 - 0.1 < float(below_db.min()) < 13
    assert 47 < float(below_db.max()) < 50.1
    torch.manual_seed(1)
    loud = clipped.varied(numbers, Variation(gain_db=6, noise=False))
    gain_db = 10 * torch.log10(loud.square().sum(1) / still.square().sum(1))
    assert -6.001 < float(gain_db.min()) < -5
    assert 5 < float(gain_db.max()) < 6.001


def test_noise_is_white_to_pink_and_of_power_one():
    noise = coloured_noise(400, 4096)
    torch.testing.assert_close(noise.square().mean(1), torch.ones(400))
    energy = torch.fft.rfft(noise).abs().square()
    octave_db = 10 * torch.log10(energy[:, 256:512].mean(1) / energy[:, 512:1024].mean(1))
    assert -1.5 < float(octave_db.min()) < 0.5
    assert 2.5 < float(octave_db.max()) < 4.5


def test_masks_hold_the_mean_and_spare_the_rest():
    log_mel = torch.randn(50, 30, 20)
    masked = vary_spectrum(log_mel, Variation(tilt=0, masks=1, mask_frames=4, mask_bands=3))
    changed = masked != log_mel
    assert changed.any()
    frames, bands = changed.all(2), changed.all(1)
    assert int(frames.sum(1).max()) == 4
    assert int(bands.sum(1).max()) == 3
    assert torch.equal(changed, frames[:, :, None] | bands[:, None])
    # what is masked by time first is the clip's mean before the mask
    for n in range(50):
        values = masked[n][changed[n]]
        torch.testing.assert_close(values, log_mel[n].mean().expand_as(values))


def test_a_microphone_changes_every_frame_alike():
    log_mel = torch.randn(8, 30, 20)
    change = vary_spectrum(log_mel, Variation(tilt=1.0, masks=0)) - log_mel
    torch.testing.assert_close(change, change[:, :1].expand_as(change), atol=1e-5, rtol=0)
    assert float(change.abs().max()) > 0.5


def test_the_same_seed_draws_the_same_batch():
    clipped, rows = Clipped(sounds(), 20, (100, 80)), []
    for _ in range(2):
        torch.manual_seed(7)
        rows.append(clipped.varied(torch.arange(3), Variation()))
    assert torch.equal(*rows)
    assert not torch.equal(rows[0], clipped.varied(torch.arange(3), Variation()))


def test_windows_and_speeds_that_are_none_are_refused():
    with pytest.raises(InputError, match="must be at least one sample"):
        Clipped(sounds(), 0)
    with pytest.raises(InputError, match="speeds"):
        Clipped(sounds(), 10, (100, 0))
