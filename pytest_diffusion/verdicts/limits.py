"""Limits: what is allowed of a figure, and who says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pytest_diffusion.verdicts.text import number

Origin = Literal["preset", "file", "call"]
"""Who set a limit: a preset of ours, a file of the user's, or the caller of an assertion helper."""


@dataclass(frozen=True)
class Limits:
    """What is allowed, and who says so. `min_samples` counts samples, `min_reference` the reference side.

    With `extractor`, the limit holds only for features whose extractor's name starts so: no distance has a
    scale of its own.
    """

    at_least: float | None = None
    at_most: float | None = None
    min_samples: int = 0
    min_reference: int = 0
    extractor: str = ""
    source: str = ""
    where: str = ""
    """File and table, such as `thresholds/default.toml [fid]`."""
    origin: Origin = "preset"

    def __post_init__(self) -> None:
        """Raise ValueError for limits that nothing, or everything, can meet."""
        low, high = self.at_least, self.at_most
        for name, value in (("at_least", low), ("at_most", high)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; expected a finite number.")
        if low is not None and high is not None and low > high:
            raise ValueError(f"at_least is {number(low)} and at_most is {number(high)}: no figure can meet both.")
        for name, count in (("min_samples", self.min_samples), ("min_reference", self.min_reference)):
            if count < 0:
                raise ValueError(f"{name} is {count}; expected a whole number of at least 0.")

    @property
    def is_set(self) -> bool:
        """Whether there is a limit at all, and not only counts."""
        return self.at_least is not None or self.at_most is not None

    @property
    def is_users_own(self) -> bool:
        """Whether the user set it, in a file or in a call. It is then held against every figure."""
        return self.is_set and self.origin != "preset"

    @property
    def text(self) -> str:
        """The limits in words: "at most 30", "between 6 and 9"."""
        low, high = self.at_least, self.at_most
        if low is not None and high is not None:
            return f"exactly {number(low)}" if low == high else f"between {number(low)} and {number(high)}"
        if low is not None:
            return f"at least {number(low)}"
        return f"at most {number(high)}" if high is not None else "no limit"
