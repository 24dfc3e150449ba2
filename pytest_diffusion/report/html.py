"""The HTML report: one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from pytest_diffusion.checks import all_checks
from pytest_diffusion.checks.pictures import Picture
from pytest_diffusion.checks.registry import Check
from pytest_diffusion.config.resources import data_folder
from pytest_diffusion.config.versions import documentation
from pytest_diffusion.report.advice import first_lines, meaning
from pytest_diffusion.report.compared import comparison_text
from pytest_diffusion.report.comparison import forest, parts_of
from pytest_diffusion.report.contents import OUTCOMES, Report
from pytest_diffusion.report.figures import draw
from pytest_diffusion.report.glance import glance
from pytest_diffusion.report.kinds import by_lens, by_reason, kind_of, not_run
from pytest_diffusion.report.selftest import COLUMNS, limit_rows, selftest_rows, selftest_text, suggested_rows
from pytest_diffusion.report.trend import trend_rows, trend_text
from pytest_diffusion.verdicts.error_rates import distance_to_limit
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import SCHEDULER_CHECKS, Verdict

if TYPE_CHECKING:
    from pytest_diffusion.conformance.laws import Law


@dataclass
class Section:
    """One lens of the page: its entries, plots (SVG by check) and pictures."""

    lens: str
    title: str
    entries: list[Entry]
    plots: dict[str, Markup] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)


def render(report: Report) -> str:
    """The page as text; everything that comes from outside is escaped."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(data_folder("templates")), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = _figure
    environment.filters["number"] = _number
    environment.filters["limits"] = _limits
    environment.filters["distance"] = _distance
    environment.filters["meaning"] = lambda verdict: meaning(verdict, _declared(verdict))
    environment.filters["limit_key"] = _limit_key
    environment.filters["rank"] = lambda verdict: OUTCOMES.index(verdict.outcome)
    environment.globals["docs"] = documentation()
    environment.globals["SCHEDULER_CHECKS"] = SCHEDULER_CHECKS
    environment.globals["documented"] = {
        check.name for check in all_checks() if check.lens != "paired" and check.function.__module__.startswith("pytest_diffusion.")
    }
    seen = by_lens(entry for entry in report.entries if entry.verdict.outcome != "skipped")
    anchors = {entry.verdict.check for entry in report.entries if entry.is_of_checklist}
    sections = [_section(*one, drawn_elsewhere=anchors if one[0] == "own" else frozenset()) for one in seen]
    verdicts = [entry.verdict for entry in report.entries]
    gallery = Picture(**report.facts["gallery"]) if "gallery" in report.facts else None
    paired = [entry.verdict for entry in report.entries if entry.is_of_checklist]
    comparison = {
        "text": comparison_text(paired, report.facts),
        "forest": Markup(forest(paired)),  # noqa: S704 - our own SVG
        "parts": parts_of(paired),
        "pairs": report.facts.get("worst_pairs", []),
        "slices": report.facts.get("worst_of_slices", []),
    }
    selftest = {
        "columns": COLUMNS,
        "rows": selftest_rows(report.facts),
        "text": selftest_text(report.facts),
        "suggested": suggested_rows(report.facts),
        "limits": limit_rows(report.facts),
    }
    drawn: dict[str, Any] = {"gallery": gallery, "glance": glance([(section.title, section.entries) for section in sections])}
    trend = {"text": trend_text(report.facts), "rows": trend_rows(report.facts, paired)}
    # The one script of the page is named by its hash: no other one may run.
    script = (data_folder("templates") / "report.js").read_text(encoding="utf-8")
    drawn["script_hash"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    drawn["script"] = Markup(script)  # noqa: S704 - our own file
    drawn["first"] = first_lines(report)
    kind, left = kind_of(report), report.decision.left_out
    drawn["reasons"], drawn["not_run"] = by_reason(report.entries), [("", left)] if kind == "scheduler" and left else not_run(left)
    drawn["kind"] = kind
    drawn["anchors"] = anchors
    template = environment.get_template("report.html.j2" if kind == "whole" else f"{kind}.html.j2")
    return template.render(
        report=report, sections=sections, verdicts=verdicts, comparison=comparison, selftest=selftest, trend=trend, **drawn
    )


def _section(lens: str, title: str, entries: list[Entry], *, drawn_elsewhere: Set[str] = frozenset()) -> Section:
    section = Section(lens, title, entries)
    # A check may also be made by a test of the user's; plots, pictures and anchors are those of the checklist.
    for name, verdict in {entry.verdict.check: entry.verdict for entry in entries}.items():
        declared = _declared(verdict)
        if name in drawn_elsewhere or declared is None or verdict.measurement is None or not verdict.measurement.series:
            continue
        section.plots[name] = Markup(_drawn(declared, verdict))  # noqa: S704 - our own SVG
        if isinstance(declared, Check) and declared.pictures is not None:
            section.pictures += _pictures(declared, verdict.measurement.series)
    return section


def _declared(verdict: Verdict) -> Check | Law | None:
    """The declaration of a verdict's check; None for one that this process does not know."""
    known: Iterable[Check | Law] = all_checks()
    if verdict.suite == SCHEDULER_CHECKS:
        from pytest_diffusion.conformance.suite import all_laws

        known = all_laws()
    found = next((one for one in known if one.name == verdict.check), None)
    if found is None and verdict.lens == "paired":
        # Those of slices and of the user's scorers are made for a run.
        from pytest_diffusion.gate.checks import scorer_check
        from pytest_diffusion.gate.slice_checks import slice_checks

        by_slice = next((one for one in slice_checks() if one.name == verdict.check), None)
        found = by_slice or scorer_check(verdict.check.removeprefix("paired_"))
    return found


def _drawn(declared: Check | Law, verdict: Verdict) -> str:
    """The check's plot; figures that cannot be drawn (all nan, say) must not take the page with them."""
    if declared.plot is None or verdict.measurement is None:
        return ""
    try:
        return draw(declared.name, declared.plot, verdict.measurement.series)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        return str(escape(f"The plot of {declared.name} could not be drawn: {type(error).__name__}: {error}"))


def _pictures(declared: Check, series: dict[str, Any]) -> list[Picture]:
    """The check's pictures; those that cannot be shown (rows of several lengths, say) must not take the page with them."""
    assert declared.pictures is not None
    try:
        found = declared.pictures(series)
        for picture in found:
            _ = picture.columns
    except (ValueError, TypeError, IndexError, KeyError) as error:
        return [Picture(f"The pictures of {declared.name} could not be drawn: {type(error).__name__}: {error}", [])]
    return found


def _figure(verdict: Verdict) -> str:
    """Figure and 95 % interval in one cell."""
    measurement = verdict.measurement
    if measurement is None:
        return "–"
    text = _number(measurement.value)
    if measurement.interval is not None:
        low, high = (_number(end) for end in measurement.interval)
        text += f" [{low}, {high}]"
    return f"{text} {measurement.unit}".strip()


def _limits(verdict: Verdict) -> str:
    limits = verdict.limits
    if limits is None or not limits.is_set:
        return "reported only" if verdict.outcome == "reported" else "–"
    parts = [f"≥ {_number(limits.at_least)}"] if limits.at_least is not None else []
    parts += [f"≤ {_number(limits.at_most)}"] if limits.at_most is not None else []
    return ", ".join(parts)


def _limit_key(verdict: Verdict) -> float | str:
    """By which a table is sorted by its limits."""
    limits = verdict.limits
    if limits is None or not limits.is_set:
        return ""
    return limits.at_most if limits.at_most is not None else limits.at_least or 0.0


def _distance(verdict: Verdict) -> str:
    """How far the figure lies inside or outside its limit."""
    distance = distance_to_limit(verdict)
    if distance is None:
        return ""
    return f"{abs(distance):.1f} se {'inside' if distance >= 0 else 'outside'}" if math.isfinite(distance) else ""


def _number(value: float | str | None) -> str:
    number = float(value) if value is not None else math.nan
    if math.isinf(number):
        return "−∞" if number < 0 else "∞"
    if math.isfinite(number) and number == int(number) and abs(number) < 1e6:
        return str(int(number))
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
