"""Train by a recipe: `separable train tokens --train eng.train ...`. A recipe's settings are its options."""

import importlib

from rich.table import Table
from rich.text import Text

from separable.commands.network import TASKS
from separable.commands.result import Result
from separable.errors import InputError
from separable.recipes import command_line, result_page


def run(task: str, arguments: list[str]) -> Result:
    """Parse the recipe's settings, train, and say where everything was written."""
    if task not in TASKS:
        raise InputError("TASK", task, f"must be one of {', '.join(TASKS)}")
    recipe = importlib.import_module(f"separable.recipes.{task}")
    settings = command_line.parse(recipe.Settings, arguments, f"separable train {task}")
    measured = recipe.main(settings)
    if not measured:  # another process reports
        return Result(measured)
    table = Table(title=f"{task}: {settings.out}", title_justify="left", show_header=False)
    for name, value in measured.items():
        if isinstance(value, (int, float)):
            time = result_page.time(value) if name in ("minutes", "processor_minutes") else ""
            shown = time or (f"{value:,}" if isinstance(value, int) else f"{value:.2f}")
            table.add_row(name.replace("_", " ").replace("minutes", "time"), shown)
    closing = f"Written to {settings.out}: network, results.json, report.html, tensorboard"
    return Result(measured, [Text(recipe.told(measured) + "\n"), table], closing)
