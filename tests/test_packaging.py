"""The wheel a person installs: its metadata, its files, and what building it needs."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import separable
from separable import _native

ROOT = Path(__file__).parents[1]
PYTHON = ("pyproject.toml", "README.md", "LICENSE", "src")
SOURCES = (*PYTHON, "MANIFEST.in", "setup.py", "csrc")


def copied(target: Path, *paths: str) -> Path:
    """The project's files under these paths, as git knows them: the checkout stays as it is."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout to know which files are the project's")
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((ROOT / name).read_bytes())
    return target


def built_wheel(source: Path, **environment: str) -> tuple[Path, str]:
    """The wheel's file, and what pip's -v shows of the build."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-v", "--wheel-dir", str(source.parent)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    variables = {name: value for name, value in os.environ.items() if name != "CXX"} | environment
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(source.parent.glob("*.whl")), done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Of the Python files alone."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    return zipfile.ZipFile(built_wheel(copied(source, *PYTHON))[0])


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


def test_core_needs_torch_safetensors_scipy_typer_and_rich_alone(metadata):
    found = requirements(metadata)
    assert found[""] == {"torch", "safetensors", "scipy", "typer", "rich"}
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


def test_the_source_archive_holds_every_file_the_kernels_are_compiled_from(tmp_path):
    """What building needs of csrc: a header left out would make every wheel from the archive a pure one, unasked."""
    source = copied(tmp_path / "source", *SOURCES)
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    files = {f"csrc/{path.name}" for kind in ("*.cpp", "*.h") for path in (ROOT / "csrc").glob(kind)}
    assert len(files) > 20
    assert files | {"setup.py", "pyproject.toml"} <= inside


def test_without_a_compiler_the_wheel_is_pure_and_the_build_says_why(tmp_path):
    source = copied(tmp_path / "source", *SOURCES)
    file, said = built_wheel(source, PATH=str(tmp_path), SEPARABLE_BUILD="auto")
    assert file.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(file).namelist() if "libseparable" in name]
    assert "native kernels NOT built (no C++ compiler); installing as pure Python" in said


@pytest.mark.skipif(_native.path is None, reason=f"no native library: {_native.missing}")
def test_the_library_that_the_build_left_needs_no_python_and_no_newer_torch():
    """The compile itself takes minutes: it is `make`'s, and this looks at what it left."""
    assert _native.path is not None
    binary = _native.path.read_bytes()
    assert b"libtorch_cpu" in binary
    assert b"libpython" not in binary
    assert b"PyObject_" not in binary
    assert b"torch_new_stable_ivalue" not in binary  # of torch newer than 2.10, which could then not load it
