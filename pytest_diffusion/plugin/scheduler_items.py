"""`pytest --diffusion-scheduler` without a model: the scheduler checks as pytest items."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.conformance.suite import Suite, scheduler_checks
from pytest_diffusion.models.schedulers import config_entries, scheduler_class_of
from pytest_diffusion.plugin.selection import chosen_checks
from pytest_diffusion.verdicts.errors import QualityFailure, SettingsError
from pytest_diffusion.verdicts.recording import record


class SchedulerChecks(pytest.Collector):
    """Collector of the checks of one scheduler, which know what the others found."""

    settings: Settings

    def collect(self) -> Iterator[pytest.Item]:
        name = str(self.settings.scheduler)
        try:
            made = scheduler_class_of(name)
            config = config_entries(made, self.settings.scheduler_config)
            suite = Suite(lambda: made(**config), profile=self.settings.scheduler_profile)
            chosen = chosen_checks(self.config, scheduler_checks())
        except SettingsError as error:
            raise self.CollectError(str(error)) from None
        except Exception as error:
            shown = ", ".join(self.settings.scheduler_config)
            raise self.CollectError(f"--diffusion-scheduler: {name}({shown}) cannot be made: {type(error).__name__}: {error}") from None
        for check in chosen:
            yield SchedulerItem.from_parent(self, name=check, suite=suite)


class SchedulerItem(pytest.Item):
    """One check; its outcome is a verdict."""

    def __init__(self, *, suite: Suite, **rest: Any) -> None:
        super().__init__(**rest)
        self.suite = suite
        self.add_marker("diffusion")

    def runtest(self) -> None:
        verdict = self.suite.verdict(self.name)
        record(verdict)
        if verdict.gates:
            raise QualityFailure(verdict)
        if verdict.outcome == "skipped":
            pytest.skip(verdict.message)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message alone: a verdict needs no traceback."""
        if isinstance(excinfo.value, QualityFailure):
            return excinfo.value.verdict.message
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int, str]:
        return self.path, 0, f"scheduler: {self.name}"


def scheduler_checks_of(session: pytest.Session, settings: Settings) -> SchedulerChecks:
    """The collector of the scheduler that the settings name."""
    checks: SchedulerChecks = SchedulerChecks.from_parent(session, name="diffusion", nodeid="diffusion")
    checks.settings = settings
    return checks
