"""How far figures lie from their limits, and how often a run would not open the gate by chance alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from pytest_diffusion.verdicts.quantiles import Z95
from pytest_diffusion.verdicts.verdict import Verdict

TARGET = 0.95
"""How often a sound model should be released, for `ErrorRates.needed`."""
_JUDGED = ("pass", "fail", "inconclusive")
_NORMAL = NormalDist()


def distance_to_limit(verdict: Verdict) -> float | None:
    """How many standard errors a judged figure lies inside its limits, negative outside; None where the figure is exact or not judged.

    From 1.96 on the whole 95 % interval lies inside. Where the interval is not normal or has few degrees of freedom, the unit
    is 1/1.96 of its half on the side of the limit, so that this still holds.
    """
    return min(_distances(verdict), default=None)


def _distances(verdict: Verdict) -> list[float]:
    """The distance to each limit that is set; none where the figure is exact or not judged."""
    measurement, limits = verdict.measurement, verdict.limits
    # A comparison with a baseline has error rates of its own, over all its looks.
    if verdict.outcome not in _JUDGED or measurement is None or limits is None or measurement.interval is None or measurement.relation:
        return []
    (low, high), value = measurement.interval, measurement.value
    if math.isnan(low + high + value):
        return []
    distances = []
    for limit, to_limit, half in (
        (limits.at_least, value - (limits.at_least or 0.0), value - low),
        (limits.at_most, (limits.at_most or 0.0) - value, high - value),
    ):
        if limit is not None:
            # An end that is exact, such as a share of 1, is as far inside as can be.
            distances.append(Z95 * to_limit / half if half > 0 else math.copysign(math.inf, to_limit))
    return distances


@dataclass(frozen=True)
class ErrorRates:
    """Of a gate that opens only if every figure passes."""

    figures: int
    """Judged figures that have an interval."""
    uncounted: int
    """Judged figures without one, whose chance is not known."""
    needed: float
    """Standard errors by which each of them must lie inside its limit, for the gate to open in 95 % of runs."""
    chance: float
    """At most so many runs of this model with other seeds would not open the gate, if its true figures are those that were measured."""
    nearest: str
    """The check whose figure is the nearest to its limit, or the farthest outside."""
    distance: float
    """How many standard errors that figure lies inside its limit."""

    @property
    def text(self) -> str:
        """The same in words."""
        others = f"; {self.uncounted} judged figures without one are not counted" if self.uncounted else ""
        return (
            f"By chance: {self.figures} figures have an interval{others}. For a green run in {TARGET:.0%} of all cases, each must lie "
            f"{self.needed:.1f} standard errors inside its limit; the nearest here is {self.nearest} with {self.distance:.1f}. "
            f"If the true figures are those measured, {_share(self.chance)} of runs with other seeds would not be open for these."
        )

    @property
    def short(self) -> str:
        """The nearest figure and the chance, in one line."""
        side = "inside" if self.distance >= 0 else "outside"
        where = f"{self.nearest} is the nearest to its limit, {abs(self.distance):.1f} standard errors {side}"
        told = "of runs would not be open for such figures, if the true ones are those measured"
        return f"{where}; with other seeds, {_share(self.chance)} {told}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def error_rates(verdicts: Iterable[Verdict]) -> ErrorRates | None:
    """The error rates of a run's gate; None where no judged figure has an interval.

    A figure whose true value lies d standard errors inside its limit passes with a chance of Φ(d − 1.96). That any of
    them does not pass is at most the sum of their chances, however they depend on one another (Bonferroni).
    """
    judged = [verdict for verdict in verdicts if verdict.outcome in _JUDGED and not (verdict.measurement and verdict.measurement.relation)]
    found = {index: distances for index, verdict in enumerate(judged) if (distances := _distances(verdict))}
    if not found:
        return None
    # A figure between two limits may cross either.
    sides = [distance for distances in found.values() for distance in distances]
    chance = min(1.0, math.fsum(_NORMAL.cdf(Z95 - distance) for distance in sides))
    needed = Z95 + _NORMAL.inv_cdf(1 - (1 - TARGET) / len(sides))
    nearest = min(found, key=lambda index: min(found[index]))
    return ErrorRates(len(found), len(judged) - len(found), needed, chance, judged[nearest].check, min(found[nearest]))


def _share(chance: float) -> str:
    if chance >= 1:
        return "up to all"
    if chance < 0.001:
        return "fewer than 0.1 %"
    return f"at most {100 * chance:.0f} %" if chance >= 0.1 else f"at most {100 * chance:.2g} %"
