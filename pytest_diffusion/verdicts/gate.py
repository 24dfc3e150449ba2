"""The state of the gate, decided in one place from the verdicts of a run and pytest's exit status."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pytest_diffusion.verdicts.verdict import Verdict

Gate = Literal["open", "closed", "empty"]


def gate_of(verdicts: Iterable[Verdict], *, exit_status: int) -> Gate:
    """`closed` when a verdict gates or pytest failed or was stopped, `empty` when nothing passed, else `open`."""
    found = list(verdicts)
    if exit_status or any(verdict.gates for verdict in found):
        return "closed"
    return "open" if any(verdict.outcome == "pass" for verdict in found) else "empty"
