"""What a command hands back to be shown."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Result:
    """`data` is what --json prints, `tables` what a person sees, `closing` the last line."""

    data: dict[str, Any]
    tables: list[Any] = field(default_factory=list)  # anything rich can print
    closing: str = ""
