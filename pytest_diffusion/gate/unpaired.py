"""Two finished reports against each other: figures whose protocols agree, as independent samples, since no pairs are at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from pytest_diffusion.config.margins import Margins
from pytest_diffusion.gate.figures import figure_named
from pytest_diffusion.gate.looks import Look, Rules
from pytest_diffusion.gate.measured import limits_of
from pytest_diffusion.maths.sequential import OneLook
from pytest_diffusion.maths.statistics import Estimate
from pytest_diffusion.verdicts.protocol import AGAINST, VERSIONS, ProtocolMismatchError, difference
from pytest_diffusion.verdicts.quantiles import Z95
from pytest_diffusion.verdicts.verdict import Measurement, Verdict, judge, skipped

_WITH_MARGINS = ("clip_score", "fid", "kid", "precision", "coverage", "vendi_score")
"""Checks whose figures have the units of the paired figures of the same name."""


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
            found[check] = difference(candidate[check], baseline[check], ignore=VERSIONS)
        except ProtocolMismatchError as error:
            verdicts.append(skipped(f"{AGAINST}{check}", str(error), lens="paired", title=f"change of {check}"))
    looks = {
        check: _look(change, candidate[check], baseline[check]) for check, change in found.items() if _has_margin(check, change, margins)
    }
    rules = Rules(margins, {check: figure_named(check).direction for check in looks}, OneLook())
    decided = rules.decide({check: [look] for check, look in looks.items()})
    for check, change in found.items():
        margin = margins.of(check)
        if check in decided and margin is not None:
            limits = limits_of(decided[check], margin, figure_named(check))
            change = replace(change, relation=decided[check].word, own_limits=limits, interval=decided[check].interval)
        shown = replace(change, name=f"change of {candidate[check].name or check}")
        verdicts.append(
            judge(f"{AGAINST}{check}", shown, None, lens="paired", title=f"change of {check}, unpaired", strict=strict, raised_by="")
        )
    return verdicts


def _has_margin(check: str, change: Measurement, margins: Margins) -> bool:
    """Whether a change can be held against a margin: one in spreads needs the values of single samples, which reports do not hold."""
    margin = margins.of(check) if check in _WITH_MARGINS else None
    return margin is not None and margin.spreads is None and change.interval is not None


def _look(change: Measurement, candidate: Measurement, baseline: Measurement) -> Look:
    assert change.interval is not None
    error = (change.interval[1] - change.interval[0]) / 2 / Z95
    return Look(change.num_samples or 0, Estimate(change.value, error), candidate.value, baseline.value, math.nan)
