"""The controller's side: gather verdicts from test reports, write the reports, print the summary."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from pytest_diffusion.config.settings import OPTIONS, Settings
from pytest_diffusion.plugin.stash import active_settings


class Reporter:
    """Collects what travels on test reports; silent while there is nothing."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.verdicts: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.run: dict[str, Any] = {}
        self.seconds = 0.0
        self.written: list[str] = []

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        carried = getattr(report, "diffusion", None)
        if carried is None:
            return
        # Of several workers one generates and the others find its samples.
        generated = max(facts.get("generated", 0) for facts in (self.run, carried["run"]))
        self.run.update({**carried["run"], "generated": generated} if generated else carried["run"])
        for verdict in carried["verdicts"]:
            # A test that expects a failure and passes keeps the gate open: pytest's outcome has the last word.
            gates = verdict["gates"] and report.failed
            self.verdicts.append({**verdict, "gates": gates, "nodeid": report.nodeid, "seconds": round(report.duration, 2)})
        if any(carried["notes"].values()):
            self.notes.append({"nodeid": report.nodeid, **carried["notes"]})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if not self.verdicts and not self.notes:
            return
        from pytest_diffusion.report.write import write_reports

        settings, _ = active_settings(self.config)
        chosen = bool(self.config.getoption("diffusion_report") or self.config.getini("diffusion_report"))
        if settings.model is None and settings.scheduler is None and not chosen:
            return
        self.written = write_reports(
            settings,
            self.verdicts,
            self.notes,
            self.run,
            command=_command(settings),
            folder=self.config.invocation_params.dir,
            exit_status=int(exitstatus),
        )

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.verdicts:
            return
        from pytest_diffusion.report.terminal import summarise

        summarise(terminalreporter, self.verdicts, self.written)


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
