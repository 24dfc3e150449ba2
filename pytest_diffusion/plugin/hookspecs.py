"""Hooks that a user's conftest.py may implement: to act on verdicts, and to add to the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_diffusion.verdicts.verdict import Verdict


def pytest_diffusion_verdict(config: pytest.Config, nodeid: str, verdict: Verdict) -> None:
    """Called for each verdict as it arrives, with the id of the test that gave it; under xdist in the controller."""


def pytest_diffusion_report_context(config: pytest.Config, context: dict[str, Any]) -> None:
    """Called before the reports are written; under xdist in the controller.

    `context["extra"]` maps titles to texts, which are shown as sections of the report and stand under "extra" in the
    JSON file. `context["verdicts"]` holds the verdicts, `context["facts"]` the facts of the run, for reading.
    """
