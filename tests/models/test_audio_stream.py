"""Sound in pieces of any length gives the scores of the whole, from a memory of fixed size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from separable.data.features import Features
from separable.errors import InputError
from separable.models.audio_stream import AudioStream
from separable.models.time_channel import TimeChannelNet

FEATURES = Features(1000, window_ms=40, hop_ms=15, bands=8)


def stream():
    torch.manual_seed(3)
    network = TimeChannelNet(num_classes=4, bands=8, channels=10, dilations=(1, 2), memory=9).double().eval()
    return AudioStream(FEATURES, network)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 97), min_size=1, max_size=25))
def test_pieces_of_any_length_give_the_scores_of_the_whole(pieces):
    torch.manual_seed(sum(pieces))
    samples = torch.randn(sum(pieces), dtype=torch.float64)
    whole, pieced = stream().hear(samples), stream()
    found = torch.cat([pieced.hear(piece) for piece in samples.split(pieces)])
    torch.testing.assert_close(found, whole, atol=1e-10, rtol=1e-10)
    assert len(whole) == max(0, 1 + (len(samples) - 40) // 15)


def test_the_last_scores_are_those_of_the_network_on_all_frames():
    samples, heard = torch.randn(777, dtype=torch.float64), stream()
    expected = heard.network(FEATURES(samples[None]))[0]
    torch.testing.assert_close(heard.hear(samples)[-1], expected, atol=1e-10, rtol=1e-10)


def test_memory_does_not_grow_and_is_under_a_frame_of_samples():
    heard = stream()
    heard.hear(torch.randn(5000))
    held = heard.remembered_bytes - heard.rest.nbytes
    for _ in range(200):
        heard.hear(torch.randn(173))
        assert len(heard.rest) < FEATURES.window
        assert heard.rest.untyped_storage().nbytes() == heard.rest.nbytes
        assert heard.remembered_bytes - heard.rest.nbytes == held


def test_after_a_reset_nothing_is_remembered():
    heard, samples = stream(), torch.randn(500, dtype=torch.float64)
    first = heard.hear(samples)
    heard.reset()
    assert torch.equal(heard.hear(samples), first)


def test_what_cannot_be_heard_is_refused():
    with pytest.raises(InputError, match="must be in evaluation mode"):
        AudioStream(FEATURES, TimeChannelNet(bands=8))
    with pytest.raises(InputError, match="must have one dimension"):
        stream().hear(torch.zeros(1, 100))
