"""The files of a report: HTML and JSON beside each other, and a Markdown summary where GitHub asks for one.

From its first moment a run leaves no report of an earlier run under its own name: the files say that the run has not
ended, until it has. A partial run does not cost the report of a whole one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from pytest_diffusion.config.cache import read_json, write_text
from pytest_diffusion.report.contents import SCHEMA, Report, worst_first
from pytest_diffusion.report.markdown import summary

_UNFINISHED = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>:root {{ color-scheme: light dark }} body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44em; margin: 3em auto }}</style>
</head><body><h1>{title}</h1><p>{text}</p></body></html>
"""
_IGNORED = ("report", "cache_dir", "batch_size", "progress", "budget", "history", "fail_on_drop")
"""Settings in which two reports may differ and still judge the same samples of the same model."""


class ReportFiles:
    """The two files of one report: what stood there before the run, and what the run leaves there."""

    def __init__(self, html: Path) -> None:
        self.html, self.json = html, html.with_suffix(".json")
        self.errors: list[str] = []
        """Why a file could not be written."""
        self._before = {path: path.read_bytes() for path in (self.html, self.json) if path.is_file()}
        self._earlier = read_json(self.json)
        self.is_ended = False
        """Whether a whole report has been written."""

    def say_unfinished(self, title: str, text: str) -> None:
        """Let both files say that there is no verdict: while a run goes on, and where it did not come to its end."""
        self._put(self.html, lambda: _UNFINISHED.format(title=escape(title), text=escape(text)))
        content = {"schema": SCHEMA, "gate": "unfinished", "exit_code": None, "reasons": [f"{title}. {text}"], "verdicts": []}
        self._put(self.json, lambda: json.dumps(content, indent=1) + "\n")

    def write(self, report: Report) -> list[str]:
        """Write the report and append to `$GITHUB_STEP_SUMMARY`; returns a line for each file.

        A partial run joins the whole report that stood there, if that is of the same model and settings; else it restores that
        report and is written beside it as `NAME.partial.html`.
        """
        html = self.html
        if report.decision.left_out and (earlier := self._whole_report()) is not None:
            if _is_same_subject(report, earlier):
                report = _joined(report, earlier)
            else:
                for path, content in self._before.items():
                    self._put(path, content.decode)
                html = html.with_suffix(".partial.html")
        written = [self._put(html, lambda: _html(report)), self._put(html.with_suffix(".json"), lambda: _json(report))]
        step_summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if step_summary and not self.is_ended:
            try:
                with Path(step_summary).open("a", encoding="utf-8") as file:
                    file.write(summary(report))
            except OSError as error:
                written.append(f"$GITHUB_STEP_SUMMARY could not be written: {error}")
        self.is_ended = True
        return written

    def _put(self, path: Path, make: Callable[[], str]) -> str:
        """Write one file; returns its path, or why it could not be written, which is also kept in `errors`."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, make())
        except Exception as error:
            # Whatever goes wrong with a report, the verdicts in the terminal stay, and the run fails.
            self.errors.append(f"{path} could not be written: {type(error).__name__}: {error}")
            return self.errors[-1]
        return str(path)

    def _whole_report(self) -> Report | None:
        """The report that stood there before the run, if it is readable and holds every check that it should."""
        try:
            earlier = Report.from_json(self._earlier)
        except (KeyError, TypeError, ValueError):
            return None
        held = {entry.verdict.check for entry in earlier.entries if entry.is_of_checklist}
        return earlier if earlier.expected and held >= set(earlier.expected) else None


def _is_same_subject(report: Report, earlier: Report) -> bool:
    settings: list[dict[str, Any]] = []
    for one in (report, earlier):
        # As JSON, since tuples come back as lists.
        shown = json.loads(json.dumps(one.shown_settings))
        settings.append({name: value for name, value in shown.items() if name not in _IGNORED})
    weights = [one.facts.get("weights") for one in (report, earlier)]
    same_weights = None in weights or weights[0] == weights[1]
    return settings[0] == settings[1] and report.versions == earlier.versions and report.expected == earlier.expected and same_weights


def _joined(report: Report, earlier: Report) -> Report:
    """The earlier report, in which the checks of this run have their new verdicts. It is as open as a partial run can be."""
    fresh = {entry.verdict.check for entry in report.entries}
    kept = [
        replace(entry, of_run=entry.of_run or earlier.created)
        for entry in earlier.entries
        if entry.verdict.check not in fresh and entry.is_of_checklist
    ]
    decision = report.decision
    old = f"{len(kept)} verdicts are of the run of {earlier.created}; the checks that were run now took the place of theirs."
    gate = "closed" if any(entry.verdict.gates for entry in kept) else decision.gate
    joined = replace(decision, gate=gate, reasons=[*decision.reasons, old], entries=[*decision.entries, *kept])
    return replace(report, entries=worst_first(joined.entries), decision=joined, facts={**earlier.facts, **report.facts})


def _json(report: Report) -> str:
    return json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n"


def _html(report: Report) -> str:
    from pytest_diffusion.report.html import render

    return render(report)
