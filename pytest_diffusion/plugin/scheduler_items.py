"""`pytest --diffusion-scheduler` without a model: the scheduler checks as pytest items."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.conformance.comparisons import COMPARISONS
from pytest_diffusion.conformance.outcomes import judged_with
from pytest_diffusion.conformance.revisions import Comparison
from pytest_diffusion.conformance.suite import Suite, scheduler_checks
from pytest_diffusion.models.schedulers import arguments_of, config_entries, scheduler_class_of
from pytest_diffusion.plugin.selection import chosen_checks
from pytest_diffusion.verdicts.errors import QualityFailure, SettingsError, unknown_name
from pytest_diffusion.verdicts.recording import record
from pytest_diffusion.verdicts.verdict import Verdict


class SchedulerChecks(pytest.Collector):
    """Collector of the checks of one scheduler, which know what the others found."""

    settings: Settings

    def collect(self) -> Iterator[pytest.Item]:
        try:
            expected = self._expected()
            suite = self._suite(expected)
            compared = self._compared()
            chosen = chosen_checks(self.config, [*scheduler_checks(), *compared])
        except SettingsError as error:
            raise self.CollectError(str(error)) from None
        except Exception as error:
            shown = f"{self.settings.scheduler}({', '.join(self.settings.scheduler_config)})"
            raise self.CollectError(f"--diffusion-scheduler: {shown} cannot be made: {type(error).__name__}: {error}") from None
        for check in chosen:
            judge = compared[check] if check in compared else partial(suite.verdict, check)
            yield SchedulerItem.from_parent(self, name=check, judge=judge, expected=expected.get(check))

    def _suite(self, expected: Mapping[str, str]) -> Suite:
        settings = self.settings
        made = scheduler_class_of(str(settings.scheduler))
        config = config_entries(made, settings.scheduler_config)
        return Suite(
            lambda: made(**config),
            profile=settings.scheduler_profile,
            expected=expected,
            arguments=config,
            kind=settings.scheduler_kind,
            prediction_type=settings.scheduler_prediction_type,
            shape=tuple(map(int, settings.scheduler_shape.split(","))) if settings.scheduler_shape else None,
            **self._declared(made(**config)),
        )

    def _declared(self, scheduler: Any) -> dict[str, Any]:
        """What the options say of plans, and of the arguments of `set_timesteps` and `step`."""
        settings = self.settings
        found: dict[str, Any] = {"names_end": settings.scheduler_names_end}
        if settings.scheduler_plan:
            found["plan"] = arguments_of(scheduler.set_timesteps, settings.scheduler_plan, "--diffusion-scheduler-plan")
        if settings.scheduler_step:
            found["step"] = arguments_of(scheduler.step, settings.scheduler_step, "--diffusion-scheduler-step")
        return found

    def _expected(self) -> dict[str, str]:
        """Checks that are known to fail, and why."""
        found = dict(entry.split("=", 1) for entry in self.settings.scheduler_expected)
        known = [*scheduler_checks(), *COMPARISONS]
        for name in found:
            if name not in known:
                raise SettingsError(unknown_name("--diffusion-scheduler-expected", name, known))
        return found

    def _compared(self) -> dict[str, Callable[[], Verdict]]:
        """The comparisons with the scheduler's baseline, where one is given."""
        if self.settings.scheduler_baseline is None:
            return {}
        own, other = (scheduler_class_of(str(name)) for name in (self.settings.scheduler, self.settings.scheduler_baseline))
        configs = [config_entries(one, self.settings.scheduler_config) for one in (own, other)]
        declared = self._declared(own(**configs[0]))
        comparison = Comparison(lambda: own(**configs[0]), lambda: other(**configs[1]), arguments=configs, **declared)
        return {name: partial(comparison.verdict, name) for name in COMPARISONS}


class SchedulerItem(pytest.Item):
    """One check; its outcome is a verdict."""

    def __init__(self, *, judge: Callable[[], Verdict], expected: str | None, **rest: Any) -> None:
        super().__init__(**rest)
        self._judge, self._expected = judge, expected
        self.add_marker("diffusion")

    def runtest(self) -> None:
        verdict = judged_with(self._judge(), self._expected, strict=False)
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
