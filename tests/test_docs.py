"""Every block of code in the README and the documentation runs, and every command parses."""

import csv
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

import separable

ROOT = Path(__file__).parents[1]
SOURCE = Path(separable.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_A_ROOM = {"index", "cli", "performance", "what-is-separable"}
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """(line number, code) of each fenced block in one of the languages."""
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start()) + 2, match[2]) for match in FENCE.finditer(text) if match[1] in languages
    ]


def commands() -> list:
    found = []
    for page in PAGES:
        for line, code in blocks(page, "sh", "shell", "bash", "console"):
            for text in code.replace("\\\n", " ").splitlines():
                text = text.strip().removeprefix("$ ")
                if text.startswith("separable "):
                    found.append(pytest.param(text.split(" #")[0], id=f"{page.name}:{line}:{text[:40]}"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page share their names, from top to bottom, in an empty folder."""
    found = blocks(page, "python", "py")
    if not found:
        return
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for line, code in found:
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)  # errors name the line of the page


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command):
    """The command exists, takes these options with these values, and needs no others; nothing of it is run."""
    import typer.main

    from separable.cli import app

    program, name, *words = (word for word in shlex.split(command) if word != "--debug")
    group = typer.main.get_command(app)
    if name.startswith("-"):
        return
    assert name in group.commands, f"`{program} {name}` is no command"
    group.commands[name].make_context(name, words)  # raises for an option, value or lack of one that is wrong


def test_every_page_has_a_room():
    for page in PAGES[1:]:
        stem = page.stem.replace("-", "_")
        if page.stem not in NOT_A_ROOM:
            assert (SOURCE / stem).is_dir() or (SOURCE / f"{stem}.py").is_file(), f"docs/{page.name} speaks of no room"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not re.match(r"\w+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_a_number_quoted_from_a_benchmark_names_a_row_that_exists():
    """`results/NAME.csv` in a page is a file of benchmarks/results."""
    for page in PAGES:
        for name in re.findall(r"results/([\w.-]+\.csv)", page.read_text()):
            assert (ROOT / "benchmarks" / "results" / name).is_file(), f"{page.name} quotes {name}"


def test_the_readings_page_quotes_every_row_as_it_was_measured():
    text = (ROOT / "docs" / "what-is-separable.md").read_text()
    with (ROOT / "benchmarks" / "results" / "readings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        macs, on_paper = int(row["macs"]) / 1e6, float(row["macs_over_dense"])
        numbers = f"{macs:.2f} | {on_paper:.2f} | {float(row['median_ms']):.3f} | {float(row['ms_over_dense']):.2f} |"
        assert f"{row['side']}x{row['side']} | {numbers}" in text, row["reading"]
    for reading in ("b gated", "c separable"):
        first, second, third = (f"{float(row['ms_over_dense']):.2f}" for row in rows if row["reading"] == reading)
        assert f"{first}, {second} and {third} of the dense time" in text, reading


def test_the_conversion_of_resnet20_reaches_what_was_asked():
    with (ROOT / "benchmarks" / "results" / "convert.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["network"] == "resnet20"]
    for share, asked in ((0.6, 90.3), (0.45, 89.0)):
        measured = [row for row in rows if row["budget"] == f"macs={share:.2f}"]
        assert measured
        assert min(float(row["score"]) for row in measured) >= asked
        assert all(float(row["macs_share"]) <= share and int(row["examples"]) <= 1024 for row in measured)


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("performance", "docs/performance.md"),
        ("reached", "docs/recipes.md"),
        ("converted", "docs/conversion.md"),
        ("converted", "README.md"),
    ],
)
def test_the_tables_of_a_page_are_those_of_the_measured_rows(script, page):
    file = ROOT / "benchmarks" / f"{script}.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look there for the types they name
    spec.loader.exec_module(module)
    text = (ROOT / page).read_text()
    assert module.page(text) == text
