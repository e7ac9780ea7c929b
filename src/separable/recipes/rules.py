"""Which values a setting may have: the types of a recipe's settings, `width: Count = 96`, and the check of them all.

A rule holds for every class that inherits the setting, whatever type that class gives it.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from separable.errors import InputError


@dataclass(frozen=True)
class Rule:
    """What is asked of a value, and how to say so. NaN passes no comparison, so it passes no rule below."""

    holds: Callable[[Any], bool]
    told: str


def one_of(*values: Any) -> Rule:
    """The rule of a setting that knows a few values alone."""
    return Rule(lambda value: value in values, f"must be one of {', '.join(map(str, values))}")


_AT_LEAST_1 = Rule(lambda value: value is None or value >= 1, "must be at least 1")

Count = Annotated[int, _AT_LEAST_1]
MaybeCount = Annotated[int | None, _AT_LEAST_1]
Counts = Annotated[Sequence[int], Rule(lambda many: min(many, default=0) >= 1, "must hold numbers of at least 1")]
Whole = Annotated[int, Rule(lambda value: value >= 0, "must be at least 0")]
Seed = Annotated[int, Rule(lambda value: 0 <= value < 2**32, "must be at least 0 and below 2**32")]
Rate = Annotated[float, Rule(lambda value: 0 < value < math.inf, "must be above 0")]
Weight = Annotated[float, Rule(lambda value: 0 <= value < math.inf, "must be at least 0")]
Share = Annotated[float, Rule(lambda value: 0 <= value <= 1, "must be at least 0 and at most 1")]
ShareBelow1 = Annotated[float, Rule(lambda value: 0 <= value < 1, "must be at least 0 and below 1")]
Channels = Annotated[int, one_of(0, 1, 3)]


def check(settings: Any) -> None:
    """Refuse the first value that breaks a rule.

    Raises:
        InputError: it names the setting, its value and the rule.
    """
    for owner in type(settings).__mro__:
        for name, kind in inspect.get_annotations(owner).items():
            value = getattr(settings, name)
            for rule in getattr(kind, "__metadata__", ()):
                if not rule.holds(value):
                    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                    raise InputError(name, shown, rule.told)
