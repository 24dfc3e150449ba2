"""HTML and JSON beside each other, and a Markdown summary where GitHub asks for one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.plugin.header import package_versions
from pytest_diffusion.report.order import counts, gate, worst_first

SCHEMA = 1


def write_reports(
    settings: Settings,
    verdicts: Sequence[dict[str, Any]],
    notes: Sequence[dict[str, Any]],
    run: dict[str, Any],
    *,
    command: str,
    folder: Path,
    exit_status: int,
) -> list[str]:
    """Write `report.json` and `report.html`, and append to `$GITHUB_STEP_SUMMARY`; the paths that were written.

    A report that cannot be written becomes a line that says why: it must not hide the verdicts.
    """
    data = report_data(settings, verdicts, notes, run, command=command, exit_status=exit_status)
    html_path = folder / settings.report
    written = []
    for path, make in ((html_path, _html), (html_path.with_suffix(".json"), _json)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_text(make(data), encoding="utf-8")
            part.replace(path)
            written.append(str(path))
        except Exception as error:
            # Whatever goes wrong with a report, the verdicts in the terminal and the exit code stay.
            written.append(f"{path} could not be written: {type(error).__name__}: {error}")
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(markdown(data))
        except OSError as error:
            written.append(f"$GITHUB_STEP_SUMMARY could not be written: {error}")
    return written


def report_data(
    settings: Settings,
    verdicts: Sequence[dict[str, Any]],
    notes: Sequence[dict[str, Any]],
    run: dict[str, Any],
    *,
    command: str,
    exit_status: int,
) -> dict[str, Any]:
    """Everything that the report says, as plain JSON."""
    shown = {item.name: getattr(settings, item.name) for item in fields(settings) if item.name != "sources"}
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gate": gate(verdicts, exit_status=exit_status),
        "exit_status": exit_status,
        "counts": counts(verdicts),
        "command": command,
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in shown.items()},
        "run": run,
        "versions": package_versions(),
        "verdicts": worst_first(verdicts),
        "notes": list(notes),
    }


def markdown(data: dict[str, Any]) -> str:
    """A summary for a pull request: the gate, and a table with the worst first."""
    lines = [f"## Diffusion quality: gate {data['gate']}", "", f"`{data['command']}`", ""]
    lines += ["| outcome | check | message |", "|---|---|---|"]
    for verdict in data["verdicts"]:
        message = verdict["message"].replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
        lines.append(f"| {verdict['outcome']} | {verdict['check']} | {message} |")
    return "\n".join(lines) + "\n"


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _html(data: dict[str, Any]) -> str:
    from pytest_diffusion.report.html import render

    return render(data)
