"""Annotations on the page of a GitHub job: workflow commands that GitHub reads from the log."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_diffusion.report.contents import OUTCOMES, grouped
from pytest_diffusion.verdicts.gate import Decision
from pytest_diffusion.verdicts.verdict import Verdict

MOST = 10
"""Of each kind in one step; GitHub shows no more."""


def workflow_commands(decision: Decision) -> list[str]:
    """An `::error` for each reason that closes the gate, worst first, and a `::warning` for each figure that is not decided."""
    counted = [entry for entry in decision.entries if not entry.excused]
    entries = sorted(counted, key=lambda entry: OUTCOMES.index(entry.verdict.outcome))
    closing = grouped(entry.verdict for entry in entries if entry.verdict.gates)
    open_ones = ("inconclusive", "undersampled")
    undecided = grouped(entry.verdict for entry in entries if entry.verdict.outcome in open_ones and not entry.verdict.gates)
    lines = _lines("error", closing)
    if not lines and decision.exit_code != 0:
        lines = [_command("error", f"gate: {decision.gate}", " ".join(decision.reasons))]
    return lines + _lines("warning", undecided)


def _lines(kind: str, found: Sequence[tuple[Verdict, list[str]]]) -> list[str]:
    lines = [_command(kind, f"{verdict.outcome}: {', '.join(checks)}", verdict.message) for verdict, checks in found]
    if len(lines) > MOST:
        lines[MOST - 1 :] = [_command(kind, "pytest-diffusion", f"and {len(lines) - MOST + 1} more; see the report")]
    return lines


def _command(kind: str, title: str, text: str) -> str:
    """A workflow command; what would end it early is escaped as GitHub asks."""
    own = title.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={own}::" + text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
