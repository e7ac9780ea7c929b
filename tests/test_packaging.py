"""The wheel a person installs: its metadata, its files, and what building it needs."""

import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import separable

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy, so that the checkout stays as it is."""
    work = tmp_path_factory.mktemp("wheel")
    copy = work / "source"
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "pyproject.toml",
            "README.md",
            "LICENSE",
            "src",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("needs a git checkout to know which files are the project's")
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(work)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True, capture_output=True)
    return zipfile.ZipFile(next(work.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def requirements(metadata: Message) -> dict[str, set[str]]:
    """Names required, by extra; the core under ""."""
    found: dict[str, set[str]] = {}
    for line in metadata.get_all("Requires-Dist"):
        requirement, _, condition = line.partition(";")
        extra = condition.partition("extra == ")[2].strip("\"' ")
        name = requirement.split(">")[0].split("=")[0].strip()
        found.setdefault(extra, set()).add(name)
    return found


def test_says_what_it_is(metadata):
    assert metadata["Name"] == "separable"
    assert metadata["Version"] == separable.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.10"


def test_core_needs_torch_safetensors_typer_and_rich_alone(metadata):
    found = requirements(metadata)
    assert found[""] == {"torch", "safetensors", "typer", "rich"}
    assert set(metadata.get_all("Provides-Extra")) == {"recipes", "deploy", "dev"} == set(found) - {""}


def test_carries_types_every_module_and_the_templates(wheel):
    inside = {name for name in wheel.namelist() if name.startswith("separable/")}
    kinds = ("*.py", "py.typed", "report/*.jinja", "report/*.css")
    source = ROOT / "src" / "separable"
    wanted = {f"separable/{path.relative_to(source)}" for kind in kinds for path in source.rglob(kind)}
    assert inside == wanted


def test_offers_the_command(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "separable = separable.cli:main" in wheel.read(name).decode()


def test_building_never_asks_for_torch():
    section = (ROOT / "pyproject.toml").read_text().partition("[build-system]")[2].partition("\n[")[0]
    requires = next(line for line in section.splitlines() if line.startswith("requires")).partition("#")[0]
    assert "setuptools" in requires
    assert "torch" not in requires
