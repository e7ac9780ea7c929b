"""What holds for every test: torchvision imports whatever its build, and draws start from one seed."""

import contextlib

import pytest
import torch

from separable.errors import InputError
from separable.models import import_torchvision

with contextlib.suppress(InputError):  # not installed: the tests that need it say so
    import_torchvision()  # timm, keras and lightning import it on their own, so it comes first


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
