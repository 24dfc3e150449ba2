"""Text from files and options as it may be shown: no control characters that a terminal obeys, and no credentials."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

_MASK = "***"
_USER = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")
_NAMED = re.compile(
    r"((?:[\w-]*(?:token|passw(?:or)?d|secret|api[_-]?key|access[_-]?key|signature|credential)|\bsig)=)[^&\s'\"]+", re.IGNORECASE
)
_TOKENS = re.compile(r"\b(hf_|gh[pousr]_|sk-|AKIA)[A-Za-z0-9_-]{12,}")
_KEPT = "\n\t"
_UNSEEN = ("Cc", "Cf", "Cs")
"""Categories of Unicode: control, formatting and half characters."""


def printable(text: str) -> str:
    """The text with control and formatting characters (escape sequences, reversed writing) spelled out, but for new lines and tabs."""
    return "".join(one if one in _KEPT or unicodedata.category(one) not in _UNSEEN else _spelled(one) for one in text)


def masked(text: str) -> str:
    """The text without user names and passwords of URLs, values of parameters such as `token=`, and tokens known by their form."""
    return _TOKENS.sub(rf"\g<1>{_MASK}", _NAMED.sub(rf"\g<1>{_MASK}", _USER.sub(_MASK, text)))


def shown(text: str) -> str:
    """The text as it may be shown: `printable` and `masked`."""
    return masked(printable(text))


def _spelled(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """A figure and its interval as they are shown: "28 [27, 29]"."""
    return number(value) + (f" [{number(interval[0])}, {number(interval[1])}]" if interval is not None else "")


def number(value: float | None) -> str:
    """A number as it is shown: three digits, none after the point of a whole one."""
    if value is None or not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
