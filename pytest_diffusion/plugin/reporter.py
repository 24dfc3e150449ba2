"""The controller's side: gather verdicts from test reports, write the reports, print the summary."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest

from pytest_diffusion.config.options import OPTIONS
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.config.versions import package_versions
from pytest_diffusion.plugin.stash import active_settings, is_given
from pytest_diffusion.verdicts.run import Carried, Entry


class Reporter:
    """Collects what travels on test reports; silent while there is nothing."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.entries: list[Entry] = []
        self.notes: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.written: list[str] = []

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        carried: Carried | None = getattr(report, "diffusion", None)
        if carried is None:
            return
        # Of several workers one generates and the others find its samples.
        generated = max(facts.get("generated", 0) for facts in (self.facts, carried.facts))
        self.facts.update({**carried.facts, "generated": generated} if generated else carried.facts)
        for verdict in carried.verdicts:
            # pytest decides last: a test that expects a failure and passes keeps the gate open.
            judged = replace(verdict, gates=verdict.gates and report.failed)
            self.entries.append(Entry(judged, report.nodeid, round(report.duration, 2)))
            self.config.hook.pytest_diffusion_verdict(config=self.config, nodeid=report.nodeid, verdict=judged)
        if carried.numbers or carried.figures:
            self.notes.append({"nodeid": report.nodeid, "numbers": carried.numbers, "figures": carried.figures})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if not self.entries and not self.notes:
            return
        from pytest_diffusion.report.contents import Report
        from pytest_diffusion.report.write import write_reports

        settings, _ = active_settings(self.config)
        if settings.model is None and settings.scheduler is None and not is_given(self.config, "report"):
            return
        context: dict[str, Any] = {"extra": {}, "verdicts": [entry.verdict for entry in self.entries], "facts": self.facts}
        try:
            self.config.hook.pytest_diffusion_report_context(config=self.config, context=context)
        except Exception as error:
            # A mistake in a conftest.py must not cost the report.
            context["extra"]["pytest_diffusion_report_context failed"] = f"{type(error).__name__}: {error}"
        report = Report.of(
            self.entries,
            settings,
            command=_command(settings),
            exit_status=int(exitstatus),
            facts=self.facts,
            versions=package_versions(),
            notes=self.notes,
            extra={str(title): str(text) for title, text in context["extra"].items()},
        )
        self.written = write_reports(report, folder=self.config.invocation_params.dir)

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.entries:
            return
        from pytest_diffusion.report.terminal import summarise

        summarise(terminalreporter, self.entries, self.written)


def _command(settings: Settings) -> str:
    """The command that reproduces the run, from our own options alone: no token can slip in."""
    parts = ["pytest"]
    for option in OPTIONS:
        value = getattr(settings, option.name)
        if settings.sources.get(option.name) not in ("option", "ini"):
            continue
        texts = value if option.many else [",".join(value) if isinstance(value, tuple) else str(value)]
        parts += [f"{option.flag}={shlex.quote(text)}" for text in texts]
    return " ".join(parts)
