"""Imports point left only: the rooms in their order, and rooms of one step never import each other."""

import ast
import sys
from pathlib import Path

import pytest

import separable

SOURCE = Path(separable.__file__).parent
STEPS = [
    ["errors", "_native", "kernels", "data", "progress", "atomic", "inputs"],
    ["functional"],
    ["layers"],
    ["models", "cost", "store", "report"],
    ["acceleration"],
    ["conversion", "export"],
    ["recipes", "apps"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
STEP = {room: step for step, rooms in enumerate(STEPS) for room in rooms}
# What every room may use: errors, progress, files written whole or not at all, copies of arguments.
GROUND = {"errors", "progress", "atomic", "inputs"}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def room_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def rooms_imported(source: str, room: str) -> set[str]:
    """Rooms that a file imports, at its top or inside a function, other than its own."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("separable.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path, so that a reader can search for them"
            parts = (node.module or "").split(".")
            if parts[0] == "separable":
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return {name for name in found if name in STEP} - {room}


def breaches(source: str, room: str) -> set[str]:
    """Rooms that a file of `room` may not import but does."""
    return {other for other in rooms_imported(source, room) - GROUND if room in GROUND or STEP[other] >= STEP[room]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_left_only(path):
    room = room_of(path)
    assert room in STEP, f"{room} has no place in the order of rooms"
    assert not breaches(path.read_text(), room)


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("functional", "from separable.layers import SeparableConv2d"),
        ("recipes", "from separable.commands import demo"),
        ("recipes", "from separable import apps"),
        ("cost", "from separable.report import page"),
        ("errors", "from separable.data import images"),
        ("layers", "def f():\n    import separable.models.xception"),
    ],
)
def test_a_breach_would_be_seen(room, line):
    assert breaches(line, room)


def test_the_core_imports_only_its_own_dependencies_at_the_top():
    """torch, safetensors, typer and rich; whatever an extra brings is imported where it is used."""
    allowed = {"torch", "safetensors", "typer", "rich", "separable"}
    foreign = {}
    for path in FILES:
        if room_of(path) in ("recipes", "apps", "kernels"):
            continue
        for node in _run_on_import(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            roots = {name.split(".")[0] for name in names} - allowed
            outside = {root for root in roots if root not in sys.stdlib_module_names}
            if outside:
                foreign[str(path.relative_to(SOURCE))] = outside
    assert not foreign


def _run_on_import(node: ast.AST):
    """Import statements outside functions and outside `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        yield from _run_on_import(child)
