"""The report: HTML, JSON, Markdown and terminal, made from verdicts alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_diffusion.report.contents import Report


def load(path: str | Path) -> Report:
    """The report in a `report.json`. Raises SettingsError for a file that is no report of a finished run."""
    from pytest_diffusion.report.earlier import report_of

    return report_of(Path(path))
