"""The section in pytest's terminal summary: worst first, the gate and the report paths last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pytest_diffusion.report.compared import comparison_text
from pytest_diffusion.report.contents import counts, grouped, worst_first
from pytest_diffusion.report.selftest import selftest_table, selftest_text
from pytest_diffusion.verdicts.error_rates import error_rates
from pytest_diffusion.verdicts.gate import Decision
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import SCHEDULER_CHECKS, Verdict

_COLOURS = {"pass": "green", "fail": "red", "missing": "red", "broken": "red", "undersampled": "yellow", "inconclusive": "yellow"}
_GATES = {"open": "green", "amber": "yellow", "partial": "yellow"}
_LISTED = 4
"""Checks that are named where one message stands for many."""
_LEFT_OUT = 8
"""Checks that are named of those that were not run; the report names all."""


def summarise(
    terminal: pytest.TerminalReporter,
    decision: Decision | None,
    entries: Sequence[Entry],
    written: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the section: one line for each verdict, those with the same message once, and the gate with its reasons."""
    terminal.ensure_newline()
    terminal.section("diffusion quality")
    entries = worst_first(decision.entries if decision is not None else entries)
    lines = grouped(entry.verdict for entry in entries)
    width = max((len(names[0]) for _, names in lines if len(names) == 1), default=0)
    for verdict, names in lines:
        terminal.write(f"{verdict.outcome:<12} ", **{_COLOURS.get(verdict.outcome, "cyan"): True, "bold": verdict.gates})
        terminal.write(f"{_names(names):<{width}}  {_message(verdict)}\n")
    if lines:
        terminal.write_line("")
        terminal.write_line(", ".join(f"{count} {outcome}" for outcome, count in counts(entries).items()))
    if (laws := [entry.verdict for entry in entries if entry.verdict.suite == SCHEDULER_CHECKS]) and any(
        verdict.outcome == "skipped" for verdict in laws
    ):
        looked = sum(verdict.outcome != "skipped" for verdict in laws)
        terminal.write_line(f"{looked} of {len(laws)} scheduler checks had something to look at.")
    rates = error_rates(entry.verdict for entry in entries)
    if rates is not None:
        terminal.write_line(rates.text)
    for line in comparison_text((entry.verdict for entry in entries if entry.is_of_checklist), facts or {}):
        terminal.write_line(line)
    for line in [*selftest_table(facts or {}), *selftest_text(facts or {})]:
        terminal.write_line(line)
    if decision is not None:
        for reason in decision.reasons:
            terminal.write_line(reason)
        if decision.left_out:
            more = f" and {len(decision.left_out) - _LEFT_OUT} more" if len(decision.left_out) > _LEFT_OUT else ""
            terminal.write_line(f"not run: {', '.join(decision.left_out[:_LEFT_OUT])}{more}")
        terminal.write_line(f"gate: {decision.gate}", **{_GATES.get(decision.gate, "red"): True, "bold": True})
    for path in written:
        terminal.write_line(f"report: {path}")


def _names(checks: Sequence[str]) -> str:
    if len(checks) == 1:
        return checks[0]
    more = ", ..." if len(checks) > _LISTED else ""
    return f"{len(checks)} checks ({', '.join(checks[:_LISTED])}{more})"


def _message(verdict: Verdict) -> str:
    """The verdict's message; a pass need not say which file its limit is in."""
    if verdict.outcome == "pass" and verdict.limits is not None:
        return verdict.message.removesuffix(f" ({verdict.limits.where}).")
    # The first lines of a long one; the whole stands in the test's failure and in the report.
    return " ".join(verdict.message.splitlines()[:3])
