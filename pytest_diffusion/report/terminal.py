"""The section in pytest's terminal summary: worst first, report paths last."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_diffusion.report.contents import counts, worst_first
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Verdict

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "skipped": "cyan"}


def summarise(terminal: pytest.TerminalReporter, entries: Sequence[Entry], written: Sequence[str]) -> None:
    """Write the section; one line for each verdict."""
    terminal.ensure_newline()
    terminal.section("diffusion quality")
    verdicts = [entry.verdict for entry in worst_first(entries)]
    width = max(len(verdict.check) for verdict in verdicts)
    for verdict in verdicts:
        terminal.write(f"{verdict.outcome:<12} ", **{_COLOURS[verdict.outcome]: True, "bold": verdict.outcome == "fail"})
        terminal.write(f"{verdict.check:<{width}}  {_message(verdict)}\n")
    terminal.write_line("")
    terminal.write_line(", ".join(f"{count} {outcome}" for outcome, count in counts(entries).items()))
    for path in written:
        terminal.write_line(f"report: {path}")


def _message(verdict: Verdict) -> str:
    """The verdict's message; a pass need not say which file its limit is in."""
    if verdict.outcome == "pass" and verdict.limits is not None:
        return verdict.message.removesuffix(f" ({verdict.limits.where}).")
    # The first lines of a long one; the whole stands in the test's failure and in the report.
    return " ".join(verdict.message.splitlines()[:3])
