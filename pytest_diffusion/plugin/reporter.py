"""The controller's side: gather verdicts from test reports, decide the gate, write the reports, print the summary."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_diffusion.config.options import OPTIONS
from pytest_diffusion.config.settings import Settings, baseline_kind
from pytest_diffusion.config.thresholds import Thresholds, is_preset
from pytest_diffusion.config.versions import package_versions
from pytest_diffusion.plugin.course import runs_tests
from pytest_diffusion.plugin.history import RunHistory
from pytest_diffusion.plugin.selection import is_typed, selection_text
from pytest_diffusion.plugin.stash import REPORT_FILES, active_settings, is_given
from pytest_diffusion.report.write import ReportFiles
from pytest_diffusion.verdicts.errors import SettingsError
from pytest_diffusion.verdicts.gate import Course, Decision, Promise, decide
from pytest_diffusion.verdicts.run import Carried, Entry
from pytest_diffusion.verdicts.text import shown

if TYPE_CHECKING:
    from pytest_diffusion.report.contents import Report


class Reporter:
    """Collects what travels on test reports; silent while there is nothing."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.entries: list[Entry] = []
        self.notes: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.written: list[str] = []
        self.decision: Decision | None = None
        self.stopped = ""
        self.failures = 0
        self._unused: list[str] = []
        self._begin = time.monotonic()

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        carried: Carried | None = getattr(report, "diffusion", None)
        if report.failed and not (carried is not None and any(verdict.gates for verdict in carried.verdicts)):
            self.failures += 1
        if carried is None:
            return
        # Of several workers one generates and the others find its samples.
        generated = max(facts.get("generated", 0) for facts in (self.facts, carried.facts))
        self.facts.update({**carried.facts, "generated": generated} if generated else carried.facts)
        for verdict in carried.verdicts:
            # pytest decides last: a test that expects a failure and passes keeps the gate open. A check of the checklist
            # expects nothing: where pytest does not count its outcome, the gate says so and does not open.
            judged = replace(verdict, gates=verdict.gates and report.failed)
            entry = Entry(judged, report.nodeid, round(report.duration, 2), carried.uses_reference)
            if entry.is_of_checklist and verdict.gates and not report.failed:
                entry = replace(entry, excused=_excuse(report))
            self.entries.append(entry)
            self.config.hook.pytest_diffusion_verdict(config=self.config, nodeid=report.nodeid, verdict=judged)
        if carried.numbers or carried.figures:
            self.notes.append({"nodeid": report.nodeid, "numbers": carried.numbers, "figures": carried.figures})

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.failures += report.failed

    @pytest.hookimpl
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.stopped = "; ".join(filter(None, map(str, excinfo.value.args))) or excinfo.typename

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker of xdist tells what it did not need."""
        self._unused.append(getattr(node, "workeroutput", {}).get("diffusion_unused", ""))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if not runs_tests(self.config.option):
            return
        if self._unused and all(self._unused):
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            self.written = [f"ERROR: {self._unused[0]}"]
            return
        settings, thresholds = active_settings(self.config)
        is_active = settings.model is not None or settings.scheduler is not None
        if not is_active and not ((self.entries or self.notes) and is_given(self.config, "report")):
            return
        history = RunHistory(settings, self.config.rootpath)
        self.decision = self._decide(settings, thresholds, history, exit_status=int(exitstatus))
        report = self._write(settings, history)
        errors = self._files(settings).errors or history.add(report)
        if errors:
            # The file that can be written must not call a gate open that the exit code closes.
            self.decision = self._decide(settings, thresholds, history, exit_status=int(exitstatus), broken_report=errors[0])
            self._write(settings, history)
        if is_active or errors:
            session.exitstatus = self.decision.exit_code

    def _decide(
        self, settings: Settings, thresholds: Thresholds, history: RunHistory, *, exit_status: int, broken_report: str = ""
    ) -> Decision:
        from pytest_diffusion.checks.promises import kept_in_mind, promises_of

        # Thresholds by the model's family are known only to the process that has the model.
        promises = [*promises_of(settings, thresholds), *(Promise(*values) for values in self.facts.get("promises", ()))]
        course = Course(
            exit_status,
            self._expected(settings),
            selection_text(self.config),
            is_typed(self.config),
            self.stopped,
            self.failures,
            broken_report,
        )
        skipped_fail_by = self.facts.get("skipped_fail_by", thresholds.skipped_fail_by)
        drops = history.drops(self.entries, strict=thresholds.inconclusive_fails)
        entries = [*self.entries, *self._against_report(settings, thresholds), *drops]
        left = kept_in_mind(dict.fromkeys(promises), self.entries, is_identical=bool(self.facts.get("identical")))
        return decide(entries, course, left, skipped_fail_by=skipped_fail_by)

    def _against_report(self, settings: Settings, thresholds: Thresholds) -> list[Entry]:
        """The changes of all figures since the run whose report is the baseline, as verdicts of their own."""
        if settings.baseline is None or baseline_kind(settings.baseline) != "report":
            return []
        from pytest_diffusion.config.thresholds import load_thresholds
        from pytest_diffusion.gate.unpaired import compare_measurements
        from pytest_diffusion.report.earlier import measurements_of

        own = [entry.verdict for entry in self.entries if entry.is_of_checklist and entry.verdict.measurement is not None]
        measured = {verdict.check: verdict.measurement for verdict in own if verdict.measurement is not None}
        # Thresholds by the model's family are known only to the process that has the model, which tells their names.
        names = [Path(name).stem if is_preset(name) else name for name in self.facts.get("thresholds", thresholds.files)]
        known = load_thresholds(names)
        found = compare_measurements(measured, measurements_of(Path(settings.baseline)), known.margins, strict=known.inconclusive_fails)
        return [Entry(verdict, f"diffusion::{verdict.check}") for verdict in found]

    def _expected(self, settings: Settings) -> tuple[str, ...]:
        """Names of the checks that a whole run has."""
        try:
            if settings.model is not None:
                from pytest_diffusion.plugin.checklist import expected_checks

                return tuple(expected_checks(settings))
            if settings.scheduler is not None:
                from pytest_diffusion.conformance.suite import scheduler_checks

                return tuple(scheduler_checks())
        except SettingsError:
            pass  # an extension that cannot be used: the collection has failed for the same reason
        return ()

    def _files(self, settings: Settings) -> ReportFiles:
        """The report's files; the ini file may ask for a report of the user's own tests, which is not announced at the start."""
        html = self.config.invocation_params.dir / settings.report
        return self.config.stash.setdefault(REPORT_FILES, ReportFiles(html))

    def _write(self, settings: Settings, history: RunHistory) -> Report:
        from pytest_diffusion.report.contents import Report

        assert self.decision is not None
        context: dict[str, Any] = {"extra": {}, "verdicts": [entry.verdict for entry in self.decision.entries], "facts": self.facts}
        try:
            self.config.hook.pytest_diffusion_report_context(config=self.config, context=context)
        except Exception as error:
            # A mistake in a conftest.py must not cost the report.
            context["extra"]["pytest_diffusion_report_context failed"] = f"{type(error).__name__}: {error}"
        report = Report.of(
            self.decision,
            settings,
            command=_command(self.config, settings),
            expected=list(self._expected(settings)),
            facts={
                **{name: value for name, value in self.facts.items() if name not in ("promises", "skipped_fail_by")},
                **history.facts(self.entries),
                "seconds": round(time.monotonic() - self._begin, 1),
            },
            versions=package_versions(),
            notes=self.notes,
            extra={str(title): str(text) for title, text in context["extra"].items()},
        )
        self.written = self._files(settings).write(report)
        return report

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        from pytest_diffusion.report.terminal import summarise

        if self.config.option.collectonly and is_given(self.config, "model", "scheduler"):
            terminalreporter.write_line("diffusion: nothing was run, and the report of an earlier run is left as it is.")
        if self.decision is not None or self.entries or self.written:
            summarise(terminalreporter, self.decision, self.entries, self.written, self.facts)
        if self.decision is not None and os.environ.get("GITHUB_ACTIONS") == "true":
            from pytest_diffusion.report.annotations import workflow_commands

            for line in workflow_commands(self.decision):
                terminalreporter.write_line(line)


def _excuse(report: pytest.TestReport) -> str:
    """Why pytest does not count an outcome that closes the gate."""
    if hasattr(report, "wasxfail"):
        return "xfail"
    # Plugins that repeat tests have an outcome of their own.
    return "it was run again" if str(report.outcome) == "rerun" else f"pytest counts it as {report.outcome}"


def _command(config: pytest.Config, settings: Settings) -> str:
    """The command that reproduces the run, from our own options and the selection alone, with credentials masked."""
    parts = ["pytest"]
    for option in OPTIONS:
        value = getattr(settings, option.name)
        if settings.sources.get(option.name) not in ("option", "ini"):
            continue
        if option.is_switch:
            parts += [option.flag] if value else []
            continue
        texts = value if option.many else [",".join(value) if isinstance(value, tuple) else str(value)]
        parts += [f"{option.flag}={shlex.quote(text)}" for text in texts]
    return shown(" ".join([*parts, selection_text(config)]).rstrip())
