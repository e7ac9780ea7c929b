"""Going on from a saved network: its shape and its words stay, so a setting that asks for others is refused."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from separable.errors import InputError
from separable.recipes.running import Running


def check(settings: Running, kept: Mapping[str, Any]) -> None:
    """Refuse the first setting, given otherwise than its default, that the network of `init` decides otherwise.

    kept: what that network has, under the names of the settings.

    Raises:
        InputError: it names the setting, what was asked for, and what the network has.
    """
    for entry in fields(settings):
        if entry.name not in kept:
            continue
        given, has = _plain(getattr(settings, entry.name)), _plain(kept[entry.name])
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        if given not in (_plain(default), has):
            rule = f"is kept from the network of init, which has {_told(has)}; leave the setting away"
            raise InputError(entry.name, _told(given), rule)


def _plain(value: Any) -> Any:
    """Lists, as a saved network has them, are what settings hold as tuples."""
    return tuple(value) if isinstance(value, list) else value


def _told(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
