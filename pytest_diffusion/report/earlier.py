"""The figures of an earlier run, read from its report.json."""

from __future__ import annotations

import json
from pathlib import Path

from pytest_diffusion.report.contents import Report
from pytest_diffusion.verdicts.errors import SettingsError
from pytest_diffusion.verdicts.verdict import Measurement


def measurements_of(path: Path) -> dict[str, Measurement]:
    """The measurements of a report by check, those of the checklist alone. Raises SettingsError for a file that is no report."""
    report = report_of(path)
    found = {entry.verdict.check: entry.verdict.measurement for entry in report.entries if entry.is_of_checklist}
    measured = {check: measurement for check, measurement in found.items() if measurement is not None}
    if not measured:
        raise SettingsError(f"{path} holds no figures of the checklist.")
    return measured


def report_of(path: Path) -> Report:
    """A report, as it was written. Raises SettingsError for a file that is no report."""
    try:
        return Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path} is no report.json of a finished run: {type(error).__name__}: {error}.") from None
