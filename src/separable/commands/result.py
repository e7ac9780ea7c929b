"""What a command hands back to be shown."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Result:
    """`data` is what --json prints, `tables` what a person sees, `closing` the last lines, `code` the exit code."""

    data: dict[str, Any]
    tables: list[Any] = field(default_factory=list)  # anything rich can print
    closing: str = ""
    code: int = 0
