"""Every mistake is one sentence, and says what to do about it."""

import copy
import pickle
import sys
from pathlib import Path

import pytest

from separable.errors import InputError, first_line, need


def test_a_path_stands_in_the_sentence_as_its_user_wrote_it():
    error = InputError("folder", Path("runs/a"), "is taken")
    assert str(error) == f"folder = {Path('runs/a')}: is taken"
    assert str(pickle.loads(pickle.dumps(error))) == str(copy.copy(error)) == str(error)


@pytest.mark.parametrize(
    ("module", "package"),
    [("PIL.Image", "pillow"), ("matplotlib.figure", "matplotlib"), ("onnx", "onnx")],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_missing_module_is_named_as_the_package_that_brings_it(module, package, whole, monkeypatch):
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, module.partition(".")[0] if whole else module, None)
    with pytest.raises(InputError) as caught:
        need(module, "deploy", "to draw")
    assert str(caught.value) == (
        f"package = {package}: is not installed and is needed to draw; add it with: pip install 'separable[deploy]'"
    )


def test_what_an_installed_package_misses_itself_is_told_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        need("broken_package", "deploy", "to draw")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n\n  first \t line \nsecond"), "first line"),
        (ValueError("   \n"), "ValueError"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_first_line_that_says_something(error, line):
    assert first_line(error) == line
