"""Tables of thresholds files, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_diffusion.verdicts.errors import SettingsError, unknown_name


def read_table(where: str, table: Any, keys: Mapping[str, type]) -> dict[str, Any]:
    """The values of a table by key, each of its type; a whole number may stand for a float.

    Raises SettingsError for a value that is no table, an unknown key, and another type.
    """
    if not isinstance(table, dict):
        raise SettingsError(f"{where} is {table!r}; expected a table with {', '.join(keys)}.")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in keys:
            raise SettingsError(f"{where}: " + unknown_name("key", key, keys))
        if isinstance(value, bool) or not isinstance(value, (int, float) if keys[key] is float else keys[key]):
            raise SettingsError(f"{where}: {key} is {value!r}; expected {keys[key].__name__}.")
        values[key] = keys[key](value)
    return values
