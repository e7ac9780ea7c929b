"""Train by a recipe: `separable train tokens --train eng.train ...`. A recipe's settings are its options."""

import importlib
from typing import Any

from rich.table import Table

from separable.commands.result import Result
from separable.errors import InputError
from separable.recipes import command_line

TASKS = ("audio", "image", "text", "tokens")


def run(task: str, arguments: list[str]) -> Result:
    """Parse the recipe's settings, train, and say where everything was written."""
    if task not in TASKS:
        raise InputError("TASK", task, f"must be one of {', '.join(TASKS)}")
    recipe = importlib.import_module(f"separable.recipes.{task}")
    settings = command_line.parse(recipe.Settings, arguments, f"separable train {task}")
    measured = recipe.main(settings)
    table = Table(title=f"{task}: what was measured", title_justify="left", show_header=False)
    for name, value in numbers(measured):
        table.add_row(name, value)
    if not measured:  # another process reports
        return Result(measured)
    return Result(measured, [table], f"Written to {settings.out}: network, results.json, report.html, tensorboard")


def numbers(measured: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The single numbers of a nested result, named by their path; lists and the settings are in results.json."""
    rows: list[tuple[str, str]] = []
    for name, value in measured.items():
        if isinstance(value, dict) and name != "settings":
            rows += numbers(value, f"{prefix}{name} ")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            rows.append((prefix + name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}"))
    return rows
