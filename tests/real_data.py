"""Where the real data lies that tests read and the project does not carry."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("SEPARABLE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def folder(name: str) -> Path:
    """The folder of one data set; the test that asks is skipped, with the reason, where it is missing."""
    found = ROOT / name
    if not found.is_dir():
        pytest.skip(f"real data '{name}' is not here: set SEPARABLE_DATA to the folder that holds it")
    return found
