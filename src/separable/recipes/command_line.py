"""A recipe's settings from its command line: --name value for each field, whose comment in the source is the help."""

import argparse
import ast
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from separable import progress
from separable.errors import InputError

_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError("settings", self.prog, message)


def parse(settings: type, arguments: list[str] | None = None, program: str | None = None) -> Any:
    """Settings from a command line: --name value for each field, lists with commas; --name alone says yes.

    Raises:
        InputError: a setting that is none, is needed and not given, or has a value of another type.
    """
    parser = _Parser(
        prog=program or settings.__module__,
        allow_abbrev=False,
        usage="%(prog)s --SETTING VALUE ...",
        description=inspect.getdoc(sys.modules[settings.__module__]),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=112),
        add_help=False,
    )
    hints, own = get_type_hints(settings), settings.__annotations__
    told: dict[str, str] = {}
    for owner in reversed(settings.__mro__[:-1]):
        told |= {name: text or told.get(name, "") for name, text in meanings(owner).items()}
    groups = {True: parser.add_argument_group("of this recipe"), False: parser.add_argument_group("of every recipe")}
    for entry in fields(settings):
        alone: dict[str, Any] = {"nargs": "?", "const": "yes"} if hints[entry.name] is bool else {}
        shown = _help(entry, told[entry.name]).replace("%", "%%")
        groups[entry.name in own].add_argument(
            "--" + entry.name.replace("_", "-"),
            metavar=_kind(hints[entry.name]),
            help=shown,
            required=_is_needed(entry),
            **alone,
        )
    parser.add_argument_group("other").add_argument("--help", "-h", action="help", help="show this and stop")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    return settings(**{name: _convert(name, value, hints[name]) for name, value in given.items()})


def run(settings: type, main: Callable[[Any], dict[str, Any]], told: Callable[[dict[str, Any]], str]) -> None:
    """What `python -m separable.recipes.TASK` does: train, tell; one sentence and exit code 2 for what is wrong."""
    with progress.shown():
        try:
            print(told(main(parse(settings))))
        except InputError as error:
            print(f"separable: {error}", file=sys.stderr)
            raise SystemExit(2) from None


def meanings(settings: type) -> dict[str, str]:
    """Each field that this class itself defines, and the comment on its lines; no comments where there is no source."""
    names = dict.fromkeys(settings.__annotations__, "")
    try:
        source = textwrap.dedent(inspect.getsource(settings))
    except OSError:
        return names
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno:
            lines = range(node.lineno, node.end_lineno + 1)
            names[node.target.id] = " ".join(comments[line] for line in lines if line in comments)
    return names


def _is_needed(entry: Field) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _help(entry: Field, told: str) -> str:
    if _is_needed(entry):
        return f"{told} (needed)"
    default = entry.default if entry.default_factory is MISSING else entry.default_factory()
    if isinstance(default, bool):
        default = "yes" if default else "no"
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return told if default in (None, "", Path(".")) else f"{told} [{shown}]".strip()


def _kind(kind: Any) -> str:
    """What stands for a value of this type in the help."""
    kinds = [kind, *get_args(kind)]
    if get_origin(kind) is Sequence:
        return "N,N,..."
    names = {bool: "yes|no", int: "N", float: "X", Path: "PATH"}
    return next((name for known, name in names.items() if known in kinds), "TEXT")


def _convert(name: str, value: str, kind: Any) -> Any:
    kinds = [kind, *get_args(kind)]
    try:
        if get_origin(kind) is Sequence:
            return tuple(int(part) for part in value.split(",") if part)
        for known in (int, float, Path):
            if known in kinds:
                return known(value)
    except ValueError:
        raise InputError(name, value, "must be a number") from None
    if kind is bool:
        if value.lower() not in (*_YES, *_NO):
            raise InputError(name, value, "must be yes or no")
        return value.lower() in _YES
    return value
