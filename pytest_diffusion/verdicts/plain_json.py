"""Plain values and back: JSON has no nan and no infinity, which stand as strings."""

from __future__ import annotations

import math
from typing import Any


def with_numbers(value: Any) -> Any:
    """Plain JSON with "nan", "inf" and "-inf", which JSON holds as strings, as numbers again."""
    if isinstance(value, dict):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def plain(value: Any) -> Any:
    """A value as `dict`, `list`, `str`, `float`, `int`, `bool` and None. Raises TypeError for any other type."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"A verdict holds plain values only; got {type(value).__name__}: {value!r}.")
