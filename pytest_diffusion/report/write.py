"""The files of a report: HTML and JSON beside each other, and a Markdown summary where GitHub asks for one."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pytest_diffusion.config.cache import write_text
from pytest_diffusion.report.contents import Report
from pytest_diffusion.report.markdown import summary


def write_reports(report: Report, *, folder: Path) -> list[str]:
    """Write the HTML and the JSON file, and append to `$GITHUB_STEP_SUMMARY`; returns the paths that were written.

    A file that cannot be written becomes a line that says why: it must not hide the verdicts.
    """
    html_path = folder / report.settings.report
    written = []
    for path, make in ((html_path, _html), (html_path.with_suffix(".json"), _json)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, make(report))
            written.append(str(path))
        except Exception as error:
            # Whatever goes wrong with a report, the verdicts in the terminal and the exit code stay.
            written.append(f"{path} could not be written: {type(error).__name__}: {error}")
    step_summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if step_summary:
        try:
            with Path(step_summary).open("a", encoding="utf-8") as file:
                file.write(summary(report))
        except OSError as error:
            written.append(f"$GITHUB_STEP_SUMMARY could not be written: {error}")
    return written


def _json(report: Report) -> str:
    return json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n"


def _html(report: Report) -> str:
    from pytest_diffusion.report.html import render

    return render(report)
