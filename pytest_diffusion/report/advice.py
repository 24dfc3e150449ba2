"""What an outcome means and what to do next, in a line for each check; and what the first screen says besides the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_diffusion.checks.registry import Check
from pytest_diffusion.report.contents import Report
from pytest_diffusion.verdicts.text import number
from pytest_diffusion.verdicts.verdict import SCHEDULER_CHECKS, Outcome, Verdict

if TYPE_CHECKING:
    from pytest_diffusion.conformance.laws import Law

_NEXT: dict[Outcome, str] = {
    "fail": "look at its plot and pictures below; where you have the model in production, --diffusion-baseline says which part did it.",
    "inconclusive": "draw more samples, or move the limit if it was a guess: nothing is shown in either direction.",
    "undersampled": "draw as many samples as the limit needs.",
    "missing": "run it, or take what asks for it out of the file or the command.",
    "broken": "mend what the message names: the terminal has the whole error.",
    "reported": "give it a limit in a thresholds file if it matters to you.",
}


_UNSEEN: dict[Outcome, str] = {
    "broken": "broken",
    "missing": "missing",
    "skipped": "with nothing to measure",
    "reported": "without a limit",
}
"""Outcomes in which nothing was held against a limit, in the words of the first screen."""


def meaning(verdict: Verdict, declared: Check | Law | None) -> str:
    """What the check finds, what a pass does not mean, and for any other outcome the next step."""
    parts = []
    if isinstance(declared, Check):
        parts += [f"It finds {declared.sees}."] if declared.sees else []
        parts += [f"It does not see {declared.blind_to}."] if declared.blind_to and verdict.outcome == "pass" else []
    if verdict.outcome == "fail" and verdict.suite == SCHEDULER_CHECKS:
        parts.append("Next: run the lines above, mend the scheduler, and run them again: they try this law alone.")
    elif verdict.outcome == "fail" and verdict.lens == "paired":
        parts.append(
            "Next: look at the part that the message names, and at the pairs that lost most; a change that is meant gets its own margin."
        )
    elif verdict.outcome in _NEXT:
        parts.append(f"Next: {_NEXT[verdict.outcome]}")
    return " ".join(parts)


def first_lines(report: Report) -> list[tuple[str, str]]:
    """Compared with what, how sure, at what cost, and what was not looked at: a name and a text each."""
    settings, found = report.shown_settings, report.counts
    files = report.facts.get("thresholds") or settings.get("thresholds") or ["default"]
    against = [f"the model {settings['baseline']}"] if settings.get("baseline") else []
    against += ["exact answers: what the papers' formulas give"] if report.is_of_scheduler else []
    against += [f"the limits of {', '.join(map(str, files))}"] if not report.is_of_scheduler or settings.get("thresholds") else []
    against += [f"the images of {settings['reference']}"] if settings.get("reference") else []
    lines = [("Compared with", ", ".join(against))]
    if report.error_rates is not None:
        lines.append(("How sure", report.error_rates.short))
    lines.append(("Cost", _cost(report)))
    counted = {**{told: found.get(outcome, 0) for outcome, told in _UNSEEN.items()}, "not run": len(report.decision.left_out)}
    unseen = ", ".join(f"{count} {told}" for told, count in counted.items() if count)
    lines.append(("Not looked at", f"checks: {unseen}" if unseen else "nothing of the checklist was left out"))
    return lines


def _cost(report: Report) -> str:
    samples = report.facts.get("generated")
    drawn = f", {samples} samples were drawn" if samples else ", no sample was drawn" if samples == 0 else ""
    return f"{duration(report.facts['seconds'])}{drawn}" if "seconds" in report.facts else "not known"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{number(seconds) if seconds < 10 else whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
