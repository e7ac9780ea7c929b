"""What `--budget` says: one or several measures with a number each, as typed."""

from collections.abc import Iterator
from contextlib import contextmanager

from separable.conversion.plan import MEASURES, read_budget
from separable.errors import InputError

_EXAMPLES = "latency=0.6, macs=0.5 or macs=0.5,params=0.6"


def parse_budget(text: str) -> dict[str, float]:
    """What the keys and their numbers may be is the library's to say.

    >>> parse_budget("macs=0.5, params=0.6")
    {'macs': 0.5, 'params': 0.6}
    """
    budget: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        try:
            amount = float(value)
        except ValueError:
            amount = None
        if key not in MEASURES or amount is None:
            rule = f"must be KEY=NUMBER of {', '.join(MEASURES)}, several with commas, as {_EXAMPLES}"
            raise InputError("--budget", text, rule)
        if key in budget:
            raise InputError("--budget", text, f"names {key} twice")
        budget[key] = amount
    with as_typed({"budget": ("--budget", text)}):
        read_budget(budget)
    return budget


@contextmanager
def as_typed(options: dict[str, tuple[str, object]]) -> Iterator[None]:
    """What the library says of an argument, said of the option that it came from, with the value as it was typed."""
    try:
        yield
    except InputError as error:
        if error.argument not in options:
            raise
        option, value = options[error.argument]
        raise InputError(option, value, error.rule) from error
