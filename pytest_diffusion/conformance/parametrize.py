"""`parametrize_with_scheduler_checks`: a pytest test for every scheduler and check."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pytest

from pytest_diffusion.conformance.laws import chosen_names, require_known
from pytest_diffusion.conformance.outcomes import judged_with
from pytest_diffusion.conformance.suite import Suite
from pytest_diffusion.verdicts.errors import QualityFailure
from pytest_diffusion.verdicts.recording import record
from pytest_diffusion.verdicts.verdict import Verdict


class SchedulerCheck:
    """One check as a function of a scheduler; checks of the same scheduler share their results."""

    def __init__(self, name: str, suite: Suite, scheduler: Any, *, must_fail: str = "", **declared: Any) -> None:
        self.name = name
        self._suite, self._scheduler, self._must_fail, self._declared = suite, scheduler, must_fail, declared

    def __call__(self, scheduler: Any) -> Verdict:
        """The verdict. Raises QualityFailure if the law is broken; skips the test if the law does not apply."""
        __tracebackhide__ = True
        suite = self._suite if scheduler is self._scheduler else Suite(scheduler, **self._declared)
        verdict = judged_with(suite.verdict(self.name), None, strict=False)
        record(verdict)
        if verdict.gates:
            raise QualityFailure(verdict)
        if verdict.outcome == "skipped":
            if self._must_fail:
                pytest.fail(judged_with(verdict, self._must_fail, strict=True).message)
            pytest.skip(verdict.message)
        return verdict

    def __repr__(self) -> str:
        return self.name


def parametrize_with_scheduler_checks(
    schedulers: Iterable[Any],
    *,
    expected_failures: Mapping[str, str] | Callable[[Any], Mapping[str, str]] | None = None,
    only: Collection[str] | None = None,
    strict: bool = False,
    profile: str = "standard",
    **declared: Any,
) -> pytest.MarkDecorator:
    """Decorator for a test with the parameters `scheduler` and `check`, whose body is `check(scheduler)`.

    `schedulers` are schedulers, or classes or functions that create one. Checks named in `expected_failures`, a dictionary or a
    function that gives one for each scheduler, are marked xfail with their reason; with `strict`, the test fails if such a check
    passes or is skipped. `only`, `profile`, and what is `declared` (`kind`, `prediction_type`, `plan`, `step`, `names_end`), are those
    of `check_scheduler`. Raises ValueError for unknown names and empty lists, TypeError for an object that is not a scheduler.
    """
    names = chosen_names(only)
    parameters = []
    labels: dict[str, int] = {}
    for scheduler in schedulers:
        given = expected_failures(scheduler) if callable(expected_failures) else expected_failures
        expected = dict(given or {})
        require_known("expected_failures", expected)
        suite = Suite(scheduler, profile=profile, expected=expected, **declared)
        label = label_of(suite)
        labels[label] = labels.get(label, 0) + 1
        if labels[label] > 1:
            label = f"{label}#{labels[label]}"
        for name in names:
            marks = [pytest.mark.xfail(reason=expected[name], strict=strict, raises=QualityFailure)] if name in expected else []
            must_fail = expected.get(name, "") if strict else ""
            check = SchedulerCheck(name, suite, scheduler, must_fail=must_fail, profile=profile, **declared)
            parameters.append(pytest.param(scheduler, check, id=f"{label}-{name}", marks=marks))
    if not parameters:
        raise ValueError("schedulers is empty; expected at least one scheduler.")
    return pytest.mark.parametrize(("scheduler", "check"), parameters)


def label_of(suite: Suite) -> str:
    """Class name of a scheduler and its non-default configuration, for the id of a test."""
    own = ",".join(
        f"{key}={value}" for key, value in sorted(suite.subject.own_values.items()) if isinstance(value, str | int | float | bool)
    )
    return f"{suite.subject.name}({own})" if own else suite.subject.name
