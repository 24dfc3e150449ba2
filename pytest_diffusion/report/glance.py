"""All figures at a glance: a strip for each lens, with the distance of each figure to its limit in units of its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup, escape

from pytest_diffusion.verdicts.error_rates import distance_to_limit
from pytest_diffusion.verdicts.quantiles import Z95
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.text import number
from pytest_diffusion.verdicts.verdict import Outcome

_LABEL, _PLOT, _EXACT, _STEP, _ROW = 190, 620, 190, 11, 16
"""Pixels: names of lenses, distances, figures without an interval, one mark beside or above another, and the least height of a strip."""
_LOWEST, _HIGHEST = -2.0, 8.0
"""Half intervals that the plot shows; what lies beyond stands at its edge."""
_MARKS: dict[Outcome, str] = {
    "pass": '<circle r="4"/>',
    "fail": '<path d="M-4-4 4 4M4-4-4 4" stroke-width="2.5"/>',
    "inconclusive": '<path d="M0-5 5 0 0 5-5 0Z"/>',
    "undersampled": '<path d="M0-5 5 4H-5Z"/>',
}
"""Shapes as well as colours tell the outcomes apart."""


def glance(strips: Sequence[tuple[str, Sequence[Entry]]]) -> str:
    """SVG of the judged figures, one strip for each title and its entries; empty where no figure was held against a limit.

    Marks are links to the rows of the checklist. A figure that lies right of the second line is inside its limit with its whole interval.
    """
    rows = [(title, marks) for title, entries in strips if (marks := [entry for entry in entries if entry.verdict.outcome in _MARKS])]
    if not rows:
        return ""
    parts, top = list[str](), 22
    for title, entries in rows:
        body, height = _strip(entries)
        parts.append(f'<g transform="translate(0,{top})"><text class="lens" x="0" y="{height - 4}">{escape(title)}</text>{body}</g>')
        top += height + 8
    zero, whole = _x(0.0), _x(1.0)
    shown = Counter(entry.verdict.outcome for _, entries in rows for entry in entries)
    said = ", ".join(f"{count} {outcome}" for outcome, count in shown.items())
    frame = (
        f'<rect class="outside" x="{_LABEL}" y="14" width="{zero - _LABEL}" height="{top - 16}"/>'
        f'<rect class="close" x="{zero}" y="14" width="{whole - zero}" height="{top - 16}"/>'
        f'<text x="{zero}" y="10" text-anchor="middle">limit</text><text x="{whole}" y="10" text-anchor="middle">1</text>'
        f'<text x="{_LABEL + _PLOT}" y="10" text-anchor="end">half intervals inside: {_HIGHEST:g} or more</text>'
        f'<text x="{_LABEL + _PLOT + 20}" y="10">without an interval</text>'
    )
    size = f'viewBox="0 0 {_LABEL + _PLOT + _EXACT} {top}"'
    head = f'<svg class="glance" role="group" aria-label="Distance of each figure to its limit: {escape(said)}" {size}>'
    return Markup(f"{head}{frame}{''.join(parts)}</svg>")  # noqa: S704 - our own SVG; texts are escaped


def _strip(entries: Sequence[Entry]) -> tuple[str, int]:
    """The marks of a strip and its height; marks that would lie on one another are stacked."""
    stacks, placed, exact = Counter[int](), list[tuple[float, int, Entry, str]](), 0
    for entry in sorted(entries, key=lambda one: distance_to_limit(one.verdict) or 0.0):
        distance = distance_to_limit(entry.verdict)
        x: float
        if distance is None:
            x, level = _LABEL + _PLOT + 26 + _STEP * (exact % 14), exact // 14
            exact, told = exact + 1, "no interval"
        else:
            x = _x(distance / Z95)
            place = round(x / _STEP)
            side = "inside" if distance >= 0 else "outside"
            level, told = stacks[place], f"{number(abs(distance) / Z95)} half intervals {side} its limit"
            stacks[place] += 1
        placed.append((x, level, entry, told))
    height = max(_ROW, (max(level for _, level, _, _ in placed) + 1) * _STEP + 4)
    return "".join(_mark(x, height - 8 - level * _STEP, entry, told) for x, level, entry, told in placed), height


def _mark(x: float, y: float, entry: Entry, told: str) -> str:
    verdict = entry.verdict
    title = f"<title>{escape(verdict.check)}: {verdict.outcome}, {told}</title>"
    own = f'<g class="{verdict.outcome}" transform="translate({x:.1f},{y:.1f})">{title}{_MARKS[verdict.outcome]}</g>'
    return f'<a href="#{escape(verdict.check)}">{own}</a>' if entry.is_of_checklist else own


def _x(halves: float) -> float:
    return _LABEL + _PLOT * (min(max(halves, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST)
