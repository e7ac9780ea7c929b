"""`import separable` is light, and every public name is there."""

import ast
import inspect
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


KEPT = {
    "SeparableConv2d": "in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1",
    "functional.depthwise_conv2d": "input, weight, bias=None, stride=1, padding=0, dilation=1, *, "
    "activation=None, impl='auto'",
    "functional.separable_conv2d": "input, dw_weight, pw_weight, dw_bias=None, pw_bias=None, stride=1, padding=0, "
    "dilation=1, *, order='depthwise_first', inner_activation=None, activation=None, recompute=False, "
    "impl='auto'",
    "cost.count": "model, example",
    "cost.profile": "model, example",
    "convert": "model, data, budget=None",
    "distill": "student, teacher, train, validation=None, epochs=10",
    "save": "model, folder",
    "load": "folder",
    "export_onnx": "model, example, file",
}


@pytest.mark.parametrize("name", KEPT)
def test_names_kept_from_here_on(name):
    """What stood in the first release may be added to at the end, and by keyword."""
    *room, last = name.split(".")
    public = getattr(separable if not room else getattr(separable, room[0]), last)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(public).parameters.values()]
    assert str(inspect.Signature(bare)).strip("()").startswith(KEPT[name])
    extra = bare[len([p for p in KEPT[name].split(", ") if p != "*"]) :]
    assert all(p.default is not p.empty for p in extra)


def test_a_count_and_a_conversion_keep_their_fields():
    import torch
    from torch import nn

    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    counted = separable.cost.count(network, torch.zeros(1, 4, 8, 8))
    assert (counted.macs, counted.params, len(counted.layers) >= 2) == (36 * 288 + 16 * 576, 880, True)
    done = separable.convert(network, torch.randn(16, 4, 8, 8), budget={"macs": 0.6})
    assert done.macs_before == counted.macs
    assert done.macs_after <= 0.6 * counted.macs
    assert [layer.name for layer in done.layers] == ["0", "2"]
    assert done.model(torch.zeros(1, 4, 8, 8)).shape == (1, 8, 4, 4)
