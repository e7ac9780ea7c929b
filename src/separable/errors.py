"""What a user did wrong, in one sentence: the argument, the value it had, the rule it breaks."""

import importlib
import os
from types import ModuleType
from typing import Any

_DISTRIBUTIONS = {"PIL": "pillow"}  # where pip knows a module under another name


class InputError(ValueError):
    """A mistake in what was asked for. The command line prints it without a stack trace and exits with 2.

    >>> raise InputError("stride", 0, "must be at least 1")
    Traceback (most recent call last):
        ...
    separable.errors.InputError: stride = 0: must be at least 1
    """

    def __init__(self, argument: str, value: Any, rule: str):
        self.argument, self.value, self.rule = argument, value, rule
        plain = isinstance(value, (str, int, float, tuple, list, os.PathLike))
        super().__init__(f"{argument} = {str(value) if plain else repr(value)}: {rule}")

    def __reduce__(self):
        return type(self), (self.argument, self.value, self.rule)


def need(module: str, extra: str, for_what: str) -> ModuleType:
    """Import what the core does without, where it is used: `need("PIL.Image", "deploy", "to read images")`.

    Args:
        module: as it is imported, a dot for a module inside a package.
        extra: of this project, which brings it: "deploy" or "recipes".
        for_what: follows "is needed", as "to export" or "for the digits".

    Raises:
        InputError: it is not installed; the sentence names the package and the extra to install.

    >>> need("nowhere.inside", "deploy", "to read images")
    Traceback (most recent call last):
        ...
    separable.errors.InputError: package = nowhere: is not installed and is needed to read images; add it with: pip install 'separable[deploy]'
    """  # noqa: E501
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name not in (package, module):  # something that it needs itself: no extra of ours would bring it
            raise
    name = _DISTRIBUTIONS.get(package, package)
    rule = f"is not installed and is needed {for_what}; add it with: pip install 'separable[{extra}]'"
    raise InputError("package", name, rule)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, to stand inside a sentence; its type where it says nothing.

    >>> first_line(ValueError("\\n  a wrong   value\\nand more"))
    'a wrong value'
    >>> first_line(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
