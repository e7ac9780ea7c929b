"""What holds for every test: torchvision imports whatever its build, draws start from one seed, kernels run.

Networks of tests are so small that torch is often faster, where `accelerate` would step back.
"""

import contextlib

import pytest
import torch

from separable.acceleration import accelerated
from separable.errors import InputError
from separable.models import import_torchvision

with contextlib.suppress(InputError):  # not installed: the tests that need it say so
    import_torchvision()  # timm, keras and lightning import it on their own, so it comes first


@pytest.fixture(autouse=True)
def _native(monkeypatch):
    monkeypatch.setattr(accelerated, "_SHORT_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
