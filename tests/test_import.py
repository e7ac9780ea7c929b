"""`import separable` is light, and every public name is there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import separable

HEAVY = ("torch", "numpy", "rich", "typer")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("code", ["import separable", "import separable.errors", "import separable; dir(separable)"])
def test_import_loads_neither_torch_nor_anything_else_of_weight(code):
    loaded = run(f"import sys\n{code}\nprint([m for m in {HEAVY} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_help_does_not_load_torch():
    code = """
import sys
sys.argv = ["separable", "--help"]
from separable.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules, "numpy" in sys.modules)
"""
    *shown, loaded = run(code).splitlines()
    assert loaded == "False False"
    assert any("profile" in line for line in shown)


@pytest.mark.parametrize("name", separable.__all__)
def test_every_public_name_resolves(name):
    assert getattr(separable, name) is not None


def test_dir_lists_the_public_names_and_type_checkers_see_the_same():
    assert dir(separable) == sorted(separable.__all__)
    tree = ast.parse(Path(separable.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(separable.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'separable' has no attribute 'Separable'"):
        separable.Separable  # noqa: B018


def test_names_kept_from_here_on():
    import inspect

    from separable import functional

    def names(f):
        return list(inspect.signature(f).parameters)

    assert names(separable.SeparableConv2d)[:6] == [
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
    ]
    assert names(functional.depthwise_conv2d) == [
        *("input", "weight", "bias", "stride", "padding", "dilation", "activation", "impl")
    ]
    assert names(functional.separable_conv2d) == [
        *("input", "dw_weight", "pw_weight", "dw_bias", "pw_bias", "stride", "padding", "dilation"),
        *("order", "inner_activation", "activation", "impl"),
    ]
