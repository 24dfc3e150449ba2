"""The section in pytest's terminal summary: worst first, report paths last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_diffusion.report.order import counts, worst_first

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "skipped": "cyan"}


def summarise(terminal: pytest.TerminalReporter, verdicts: Sequence[dict[str, Any]], written: Sequence[str]) -> None:
    """Write the section; one line for each verdict."""
    terminal.ensure_newline()
    terminal.section("diffusion quality")
    width = max(len(verdict["check"]) for verdict in verdicts)
    for verdict in worst_first(verdicts):
        outcome = verdict["outcome"]
        terminal.write(f"{outcome:<12} ", **{_COLOURS[outcome]: True, "bold": outcome == "fail"})
        terminal.write(f"{verdict['check']:<{width}}  {_message(verdict)}\n")
    terminal.write_line("")
    terminal.write_line(", ".join(f"{count} {outcome}" for outcome, count in counts(verdicts).items()))
    for path in written:
        terminal.write_line(f"report: {path}")


def _message(verdict: dict[str, Any]) -> str:
    """The verdict's message; a pass need not say which file its limit is in."""
    message: str = verdict["message"]
    if verdict["outcome"] == "pass" and verdict["limits"]:
        return message.removesuffix(f" ({verdict['limits']['where']}).")
    # Of a long one, what was broken, expected and seen; the whole stands in the test's failure and in the report.
    return " ".join(message.splitlines()[:3])
