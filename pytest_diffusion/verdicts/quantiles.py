"""How many standard errors a 95 % interval extends to each side."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""Where the standard error is as good as known."""


def t95(degrees: float) -> float:
    """The same where the standard error was estimated with this many degrees of freedom. Source: Student 1908."""
    from scipy.special import stdtrit  # here, because pytest starts without scipy

    return float(stdtrit(degrees, 0.975)) if 1 <= degrees < math.inf else Z95
