"""Protocols: what a figure was measured with, the refusal to compare two that differ, and the difference of two that agree."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from pytest_diffusion.verdicts.verdict import Measurement

AGAINST, DROP = "against_", "drop_"
"""Before the name of a check, for its change against an earlier report, and against the last release of a history."""
CHANGES = ("paired_", AGAINST, DROP)
"""Before the names of checks whose figures are changes against another model, which say nothing without it."""
VERSIONS = ("versions",)
"""Entries in which two protocols may differ and still be compared: what changed is said, and seldom changes a figure."""


class ProtocolMismatchError(ValueError):
    """Two figures were measured in different ways; `differences` holds the two values of each differing entry."""

    def __init__(self, differences: Mapping[str, tuple[Any, Any]]) -> None:
        self.differences = dict(differences)
        listed = "; ".join(f"{key} is {left!r} on one side and {right!r} on the other" for key, (left, right) in self.differences.items())
        super().__init__(f"The two were measured differently and cannot be compared: {listed}.")


def require_same_protocol(left: Mapping[str, Any], right: Mapping[str, Any], *, ignore: Collection[str] = ()) -> None:
    """Raise ProtocolMismatchError where both protocols have an entry and the two differ.

    An entry that one side lacks is unknown, which is no difference: files of other tools record nothing.
    """
    differences = {key: (left[key], right[key]) for key in left if key in right and key not in ignore and left[key] != right[key]}
    if differences:
        raise ProtocolMismatchError(differences)


def difference(candidate: Measurement, baseline: Measurement, *, ignore: Collection[str] = ()) -> Measurement:
    """Candidate minus baseline, with the 95 % interval of the difference of two independent figures.

    Raises ProtocolMismatchError where name, protocol or sample counts differ, and says what; `ignore` names
    entries that may (such as "versions", after a look at what changed).
    """
    require_same_protocol(_described(candidate), _described(baseline), ignore=ignore)
    interval = None
    if candidate.interval is not None and baseline.interval is not None:
        interval = difference_interval(candidate.value, candidate.interval, baseline.value, baseline.interval)
    return Measurement(
        candidate.value - baseline.value,
        f"difference in {candidate.name}",
        candidate.unit,
        interval,
        candidate.num_samples,
        candidate.num_reference,
        candidate.protocol,
    )


def difference_interval(
    value: float, interval: tuple[float, float], other: float, other_interval: tuple[float, float]
) -> tuple[float, float]:
    """Interval of `value` - `other`, which are independent. Source: the square-and-add method of Newcombe 1998."""
    down = math.hypot(value - interval[0], other_interval[1] - other)
    up = math.hypot(interval[1] - value, other - other_interval[0])
    return value - other - down, value - other + up


def _described(measurement: Measurement) -> dict[str, Any]:
    counts = {"num_samples": measurement.num_samples, "num_reference": measurement.num_reference}
    return {"name": measurement.name, **measurement.protocol, **counts}
