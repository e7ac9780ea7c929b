"""What a user did wrong, in one sentence: the argument, the value it had, the rule it breaks."""

from typing import Any


class InputError(ValueError):
    """A mistake in what was asked for. The command line prints it without a stack trace and exits with 2.

    >>> raise InputError("stride", 0, "must be at least 1")
    Traceback (most recent call last):
        ...
    separable.errors.InputError: stride = 0: must be at least 1
    """

    def __init__(self, argument: str, value: Any, rule: str):
        self.argument, self.value, self.rule = argument, value, rule
        shown = str(value) if isinstance(value, (str, int, float, tuple, list)) else repr(value)
        super().__init__(f"{argument} = {shown}: {rule}")

    def __reduce__(self):
        return type(self), (self.argument, self.value, self.rule)
