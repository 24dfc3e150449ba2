"""Two finished reports against each other: figures whose protocols agree, as independent samples, since no pairs are at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from scipy.stats import norm

from pytest_diffusion.config.margins import Margin, Margins
from pytest_diffusion.gate.figures import figure_named
from pytest_diffusion.gate.looks import Word
from pytest_diffusion.maths.sequential import holm
from pytest_diffusion.verdicts.limits import Limits
from pytest_diffusion.verdicts.protocol import ProtocolMismatchError, difference
from pytest_diffusion.verdicts.quantiles import Z95
from pytest_diffusion.verdicts.verdict import Measurement, Verdict, judge, skipped

_IGNORED = ("versions",)
_WITH_MARGINS = ("clip_score", "fid", "kid", "precision", "coverage", "vendi_score")
"""Checks whose figures have the units of the paired figures of the same name."""
PREFIX = "against_"
"""Before the name of a check, for its comparison."""


def compare_measurements(
    candidate: Mapping[str, Measurement], baseline: Mapping[str, Measurement], margins: Margins, *, strict: bool = True
) -> list[Verdict]:
    """A verdict on the change of each figure that both sides have, by check.

    The difference is that of two independent samples, whose interval is wider than that of pairs. Figures with a margin are
    `better`, `same`, `worse` (controlled over all of them by Holm) or `cannot tell`; the others are reported.
    """
    found: dict[str, Measurement] = {}
    verdicts = []
    for check in (check for check in candidate if check in baseline and not check.startswith("paired_")):
        try:
            found[check] = difference(candidate[check], baseline[check], ignore=_IGNORED)
        except ProtocolMismatchError as error:
            verdicts.append(skipped(f"{PREFIX}{check}", str(error), lens="paired", title=f"change of {check}"))
    sizes = {check: margins.by_figure[check] for check in found if check in _WITH_MARGINS and margins.of(check) is not None}
    units = {check: margin.in_units(baseline[check].value, math.nan) for check, margin in sizes.items()}
    units = {check: size for check, size in units.items() if not math.isnan(size) and found[check].interval is not None}
    p_values = {check: _p_worse(found[check], units[check], sizes[check], check) for check in units}
    worse = holm(p_values, margins.alpha)
    for check, change in found.items():
        if check in units:
            word = "worse" if check in worse else _word(change, units[check], sizes[check], check)
            limits = _limits(sizes[check], units[check], check)
            change = replace(change, relation=word, own_limits=limits)
        shown = replace(change, name=f"change of {candidate[check].name or check}")
        verdicts.append(
            judge(f"{PREFIX}{check}", shown, None, lens="paired", title=f"change of {check}, unpaired", strict=strict, raised_by="")
        )
    return verdicts


def _is_two_sided(margin: Margin, check: str) -> bool:
    return margin.kind == "equivalence" or figure_named(check).direction == 0


def _p_worse(change: Measurement, size: float, margin: Margin, check: str) -> float:
    """One-sided p-value of "within the margin", by the normal law."""
    assert change.interval is not None
    error = (change.interval[1] - change.interval[0]) / 2 / Z95
    if error == 0:
        return 1.0
    up, down = (float(norm.sf((side * change.value - size) / error)) for side in (1, -1))
    if _is_two_sided(margin, check):
        return min(1.0, 2 * min(up, down))
    return down if figure_named(check).direction > 0 else up


def _word(change: Measurement, size: float, margin: Margin, check: str) -> Word:
    assert change.interval is not None
    low, high = change.interval
    if _is_two_sided(margin, check):
        return "same" if low > -size and high < size else "cannot tell"
    worst = low if figure_named(check).direction > 0 else -high
    if worst > size:
        return "better"
    return "same" if worst > -size else "cannot tell"


def _limits(margin: Margin, size: float, check: str) -> Limits:
    two_sided, direction = _is_two_sided(margin, check), figure_named(check).direction
    low = -size if two_sided or direction > 0 else None
    high = size if two_sided or direction < 0 else None
    return Limits(low, high, source=f"{margin.source}; margin {margin.text}", where=margin.where, origin=margin.origin)
