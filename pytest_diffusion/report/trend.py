"""The trend of figures over the runs of a history: a small picture beside each figure, and a plot of any of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from pytest_diffusion.config.remote import is_url
from pytest_diffusion.report.history import History, protocol_key
from pytest_diffusion.verdicts.plain_json import plain, with_numbers
from pytest_diffusion.verdicts.protocol import CHANGES, difference_interval
from pytest_diffusion.verdicts.text import number, shown, with_interval
from pytest_diffusion.verdicts.verdict import Measurement, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 20
"""Earlier runs that the report shows."""
_WIDTH, _HEIGHT, _EDGE = 150, 30, 5


@dataclass(frozen=True)
class Row:
    """A figure's line of the report's table: the last release's figure, this run's, their change, and the picture of all."""

    check: str
    before: str
    now: str
    change: str
    picture: Markup


def trend_facts(history: History, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Plain values: the last release, and for each figure the earlier runs that measured it in the same way."""
    trends = {}
    for verdict in verdicts:
        own = verdict.measurement
        if own is None or verdict.check.startswith(CHANGES):
            continue
        same = history.earlier(verdict.check, own)
        release = history.last_release_with(verdict.check)
        is_same = release is not None and any(run.id == release.id for run, _ in same)
        trends[verdict.check] = {
            "points": [[run.created, run.gate, one.value, *(one.interval or (None, None))] for run, one in same[-_SHOWN:]],
            "release": plain([release.measurements[verdict.check].value, release.measurements[verdict.check].interval])
            if release is not None and is_same
            else None,
        }
    release = history.last_release
    named = ("created", "commit_id", "gate", "weights", "subject")
    told = {name: getattr(release, name) for name in named} if release is not None else None
    place = shown(history.place) if is_url(history.place) else history.place
    found: dict[str, Any] = plain({"place": place, "runs": len(history.runs), "release": told, "trends": trends})
    return found


def trend_text(facts: Mapping[str, Any]) -> list[str]:
    """What the history says, in sentences; empty without one."""
    found = facts.get("history")
    if not found:
        return []
    release = found["release"]
    if release is None:
        return [f"The history {found['place']} holds {found['runs']} earlier runs, none of them with an open gate."]
    commit = f", commit {release['commit_id'][:12]}" if release["commit_id"] else ""
    last = f"The last run with an open gate is of {release['created']} ({release['subject']}{commit})"
    lines = [f"{last}; the history holds {found['runs']} earlier runs."]
    otherwise = sum(trend["release"] is None for trend in found["trends"].values())
    if otherwise:
        have = "1 figure of this run has" if otherwise == 1 else f"{otherwise} figures of this run have"
        lines.append(f"{have} no release there that measured it in the same way, and nothing to be compared with.")
    return lines


def trend_rows(facts: Mapping[str, Any], verdicts: Sequence[Verdict]) -> list[Row]:
    """A row for each figure that has an interval or has changed, beside the last release that measured it, in the same way."""
    trends = facts.get("history", {}).get("trends", {})
    rows = []
    for verdict in verdicts:
        own, trend = verdict.measurement, trends.get(verdict.check)
        if own is None or trend is None or trend["release"] is None:
            continue
        value, interval = with_numbers(trend["release"])
        if interval is None and own.interval is None and value == own.value:
            continue
        points = [_point(with_numbers(point)) for point in trend["points"]] + [(own.value, own.interval)]
        told = with_interval(value, interval), with_interval(own.value, own.interval), _change(own, value, interval)
        rows.append(Row(verdict.check, *told, spark(points)))
    return rows


def spark(points: Sequence[tuple[float, tuple[float, float] | None]]) -> Markup:
    """SVG of figures with their intervals, oldest first; the last one, which is this run's, stands out."""
    finite = [(value, interval) for value, interval in points if math.isfinite(value)]
    kept = [(value, interval if interval and not any(map(math.isnan, interval)) else (value, value)) for value, interval in finite]
    if len(kept) < 2:
        return Markup()
    lows, highs = [low for _, (low, _) in kept], [high for _, (_, high) in kept]
    bottom, top = min(filter(math.isfinite, [*lows, *(v for v, _ in kept)])), max(filter(math.isfinite, [*highs, *(v for v, _ in kept)]))
    step = (_WIDTH - 2 * _EDGE) / (len(kept) - 1)

    def y(value: float) -> float:
        share = (min(max(value, bottom), top) - bottom) / (top - bottom) if top > bottom else 0.5
        return _HEIGHT - _EDGE - share * (_HEIGHT - 2 * _EDGE)

    places = [(_EDGE + index * step, value, ends) for index, (value, ends) in enumerate(kept)]
    bars = "".join(f"M{x:.1f} {y(low):.1f}V{y(high):.1f}" for x, _, (low, high) in places)
    line = "M" + "L".join(f"{x:.1f} {y(value):.1f}" for x, value, _ in places)
    last_x, last, _ = places[-1]
    said = escape(f"Trend over {len(kept)} runs, from {number(kept[0][0])} to {number(last)}")
    return Markup(  # noqa: S704 - our own SVG; the text is escaped
        f'<svg class="spark" role="img" aria-label="{said}" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}">'
        f'<title>{said}</title><path class="bars" d="{bars}"/><path d="{line}"/><circle cx="{last_x:.1f}" cy="{y(last):.1f}" r="3"/></svg>'
    )


def plot(history: History, checks: Sequence[str]) -> Figure:
    """A plot of each check over the runs.

    A line joins only figures that were measured in the same way; hollow marks are of runs whose gate was not open.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(checks)), constrained_layout=True)
    for axes, check in zip(figure.subplots(len(checks), squeeze=False)[:, 0], checks, strict=True):
        by_protocol: dict[str, list[tuple[int, Measurement, bool]]] = {}
        for index, run in enumerate(history.runs):
            if (found := run.measurements.get(check)) is not None:
                by_protocol.setdefault(protocol_key(found), []).append((index, found, run.is_release))
        for series, points in enumerate(by_protocol.values()):
            color = f"C{series % 10}"
            values = [one.value for _, one, _ in points]
            errors = [[abs(one.value - one.interval[side]) if one.interval else 0.0 for _, one, _ in points] for side in (0, 1)]
            axes.errorbar([index for index, _, _ in points], values, yerr=errors, color=color, linewidth=1.2, elinewidth=0.8)
            for is_open in (True, False):
                chosen = [(index, one.value) for index, one, released in points if released == is_open]
                axes.plot(*zip(*chosen, strict=True) if chosen else ([], []), "o", color=color, fillstyle="full" if is_open else "none")
        axes.set_title(check, loc="left")
        axes.set_ylabel(next(iter(by_protocol.values()))[0][1].unit if by_protocol else "")
        axes.set_xticks(range(len(history.runs)), [f"{run.created[:10]}\n{run.commit_id[:7]}" for run in history.runs], fontsize=7)
    return figure


def _point(values: Sequence[Any]) -> tuple[float, tuple[float, float] | None]:
    value, low, high = values[2:5]
    return float(value), None if low is None else (low, high)


def _change(own: Measurement, value: float, interval: Sequence[float] | None) -> str:
    change = own.value - value
    if own.interval is None or interval is None:
        return f"{change:+.3g}"
    low, high = difference_interval(own.value, own.interval, value, (interval[0], interval[1]))
    return f"{change:+.3g} [{low:+.3g}, {high:+.3g}]"
