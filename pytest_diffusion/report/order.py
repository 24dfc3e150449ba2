"""One order and one overall outcome for every form of the report: worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

OUTCOMES = ("fail", "inconclusive", "skipped", "pass")


def worst_first(verdicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts by outcome, worst first, otherwise in the order in which they came."""
    return sorted(verdicts, key=lambda verdict: (not verdict["gates"], OUTCOMES.index(verdict["outcome"])))


def counts(verdicts: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many verdicts have each outcome, worst first, without zeros."""
    found = Counter(verdict["outcome"] for verdict in verdicts)
    return {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}


def gate(verdicts: Sequence[dict[str, Any]], *, exit_status: int) -> str:
    """`closed` when a verdict gates or pytest failed or was stopped, `empty` when nothing passed, else `open`."""
    if exit_status or any(verdict["gates"] for verdict in verdicts):
        return "closed"
    return "open" if any(verdict["outcome"] == "pass" for verdict in verdicts) else "empty"
