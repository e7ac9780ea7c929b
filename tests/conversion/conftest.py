"""What tests of conversion share: one thread, which small sums run faster on, and layers chosen without a clock."""

import pytest
import torch

from separable.conversion import timing


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def untimed(monkeypatch):
    """Forms are not timed, so that a plan under a budget of MACs or parameters is the same on every machine."""
    monkeypatch.setattr(timing, "time_options", lambda *_: None)
