"""Times for people."""

from __future__ import annotations

import re

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def duration(seconds: float) -> str:
    """A time in words: "45 s", "12 min", "3.5 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == int(seconds) else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def parsed_duration(text: str) -> float:
    """Seconds of "45s", "90m", "2h", "1.5h" or a number of seconds. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?", text.strip())
    if found is None or float(found[1]) <= 0:
        raise ValueError("expected a time, as 45m, 2h or a number of seconds")
    return float(found[1]) * _UNITS[found[2] or "s"]
