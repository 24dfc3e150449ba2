"""The five kinds of report, each with a page of its own, and how a page orders what a run saw and what it did not see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pytest_diffusion.checks import LENS_TITLES, all_checks
from pytest_diffusion.report.contents import Report
from pytest_diffusion.verdicts.run import Entry

Kind = Literal["whole", "comparison", "scheduler", "partial", "unfinished"]
"""A template of the same name extends `report.html.j2`, which is the page of a whole run."""


def kind_of(report: Report) -> Kind:
    """What a reader of this report wants to know first."""
    if report.gate == "unfinished":
        return "unfinished"
    if report.is_of_scheduler:
        return "scheduler"
    if report.decision.left_out:
        return "partial"
    seen = [entry for entry in report.entries if entry.is_of_checklist and entry.verdict.outcome != "skipped"]
    return "comparison" if any(entry.verdict.lens == "paired" for entry in seen) else "whole"


def by_lens(entries: Iterable[Entry]) -> list[tuple[str, str, list[Entry]]]:
    """Lens, title and entries of each section: the checklist by its lenses, then what the user's own tests judged."""
    known = {str(lens): title for lens, title in LENS_TITLES.items()} | {"": "Other checks"}
    found: dict[str, list[Entry]] = {lens: [] for lens in (*known, "own")}
    for entry in entries:
        # A lens of another version has a table too: no entry is lost.
        found.setdefault(entry.verdict.lens if entry.is_of_checklist else "own", []).append(entry)
    own = found.pop("own")
    sections = [(lens or "other", known.get(lens, lens), chosen) for lens, chosen in found.items()]
    return [one for one in (*sections, ("own", "Your own tests", own)) if one[2]]


def by_reason(entries: Iterable[Entry]) -> list[tuple[str, list[Entry]]]:
    """Checks that had nothing to measure, by their common reason, the one that most of them have first."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.verdict.outcome == "skipped":
            found.setdefault(entry.verdict.message, []).append(entry)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def not_run(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Names of checks that were not run, by the title of their lens; those of checks that this process does not know have none."""
    lenses = {check.name: check.lens for check in all_checks()}
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(LENS_TITLES[lenses[name]] if name in lenses else "", []).append(name)
    return list(found.items())
