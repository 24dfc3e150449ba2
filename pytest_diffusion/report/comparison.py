"""All figures of a comparison in one picture, in units of their margins, and the parts of both models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pytest_diffusion.report.figures import draw
from pytest_diffusion.verdicts.drawing import PALETTE, axes_of
from pytest_diffusion.verdicts.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"worse": PALETTE[4], "cannot tell": PALETTE[1], "same": PALETTE[0], "better": PALETTE[2]}
_WIDEST = 4.0
"""Margins to either side that the plot shows; what lies beyond is marked at its edge."""


def forest(verdicts: Iterable[Verdict]) -> str:
    """SVG of every judged change in units of its margin, with interval and noise floor; empty where there is none."""
    rows = [row for verdict in verdicts if (row := _row(verdict)) is not None]
    return draw("forest", _forest, {"rows": rows}) if rows else ""


def parts_of(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """The parts of both models, from the check that compared them."""
    found = next((one for one in verdicts if one.measurement is not None and "parts" in one.measurement.series), None)
    return list(found.measurement.series.get("parts", [])) if found is not None and found.measurement is not None else []


def _row(verdict: Verdict) -> list[Any] | None:
    """Name, word, change, interval and floor in units of the margin; positive is to the right, where the candidate is better."""
    one, limits = verdict.measurement, verdict.limits
    margin = one.series.get("margin") if one is not None else None
    if one is None or limits is None or not margin or one.interval is None or not one.relation:
        return None
    sign = -1 if limits.at_least is None else 1
    ends = sorted(sign * float(end) / margin for end in one.interval)
    two_sided = limits.at_least is not None and limits.at_most is not None
    name = verdict.check.removeprefix("paired_") + (" (either way)" if two_sided else "")
    return [name, one.relation, sign * one.value / margin, *ends, float(one.series.get("floor") or 0.0) / margin]


def _forest(series: dict[str, Any]) -> Figure:
    rows = series["rows"][::-1]
    figure, axes = axes_of(7.2, 0.9 + 0.32 * len(rows))
    for place, (_, word, value, low, high, floor) in enumerate(rows):
        shown = [max(-_WIDEST, min(_WIDEST, one)) for one in (low, value, high)]
        axes.barh(place, 2 * floor, left=-floor, height=0.7, color=PALETTE[6], alpha=0.25, linewidth=0)
        axes.plot([shown[0], shown[2]], [place, place], color=_COLOURS[word], linewidth=2)
        beyond = value != shown[1]
        axes.plot(shown[1], place, marker=("<" if value < 0 else ">") if beyond else "o", color=_COLOURS[word], markersize=6)
        axes.text(_WIDEST + 0.15, place, word, va="center", fontsize=8)
    for line, style in ((-1, "--"), (0, "-"), (1, ":")):
        axes.axvline(line, color=PALETTE[6], linewidth=1, linestyle=style)
    axes.set(
        xlim=(-_WIDEST - 0.1, _WIDEST + 0.1),
        ylim=(-0.7, len(rows) - 0.3),
        xlabel="change in margins: worse to the left, better to the right",
    )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_title("Every figure against its margin (dashed); grey: the noise floor", fontsize=9)
    return figure
