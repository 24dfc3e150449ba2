"""The measurement of a decided difference, with its margin as limits, as the report and the verdict read it."""

from __future__ import annotations

from typing import Any

from pytest_diffusion.config.margins import Margin
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.figures import Figure
from pytest_diffusion.gate.hybrids import Blame
from pytest_diffusion.gate.looks import Decided
from pytest_diffusion.verdicts.limits import Limits
from pytest_diffusion.verdicts.verdict import Measurement


def measured(
    decided: Decided,
    figure: Figure,
    comparison: Comparison,
    *,
    series: dict[str, Any],
    planned: int,
    stopped: bool = False,
    what: str = "pairs",
    remedy: str = ": raise --diffusion-max-samples",
    blame: Blame | None = None,
) -> Measurement:
    """The measurement of a decided difference, with its margin as limits."""
    look, margin = decided.look, comparison.margins.of(figure.name)
    hint = decided.reason[:1].upper() + decided.reason[1:] + "." if decided.reason else ""
    unjudged = ""
    if blame is not None:
        hint = f"{hint} {blame.text}".strip()
        series = {**series, "blame": blame.to_json()}
    if decided.word == "cannot tell" and not decided.is_blurred:
        if stopped:
            unjudged = f"the comparison stopped after {look.pairs} {what}, because another figure is worse."
        else:
            hint += f" More than {look.pairs} {what} would be needed{remedy}."
    return Measurement(
        look.difference.value,
        f"change of {figure.title}",
        figure.unit,
        decided.interval,
        look.pairs,
        protocol={
            "paired": f"{look.candidate:.4g} against {look.baseline:.4g}, {comparison.name}",
            "clusters": look.clusters or look.pairs,
            "interval": f"{100 * (1 - 2 * comparison.margins.alpha):g} %, valid at every look",
        },
        series={
            **series,
            "floor": decided.floor,
            "margin": decided.margin,
            "p_worse": decided.p_worse,
            "planned": planned,
            "spread": look.spread,
            "looks": [[one.pairs, one.difference.value, one.difference.standard_error] for one in decided.history],
        },
        hint=hint,
        unjudged=unjudged,
        relation="" if unjudged else decided.word,
        own_limits=limits_of(decided, margin, figure) if margin is not None else None,
    )


def limits_of(decided: Decided, margin: Margin, figure: Figure) -> Limits:
    """The margin as limits of the change."""
    size = decided.margin
    assert size is not None
    two_sided = margin.is_two_sided(figure.direction)
    low = -size if two_sided or figure.direction > 0 else None
    high = size if two_sided or figure.direction < 0 else None
    return Limits(low, high, source=f"{margin.source}; margin {margin.text}", where=margin.where, origin=margin.origin)
