"""`check_scheduler`: every law on one scheduler. Each verdict has the expected and the observed result, and code to reproduce it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from pytest_diffusion.conformance.laws import LAWS, Broken, Law
from pytest_diffusion.conformance.shrink import Finding, as_it_was_seen, smallest, thorough_cases
from pytest_diffusion.conformance.subject import Crash, Subject
from pytest_diffusion.verdicts.errors import ConformanceFailure, NotApplicable, unknown_name
from pytest_diffusion.verdicts.recording import record
from pytest_diffusion.verdicts.verdict import SCHEDULER_CHECKS, Limits, Measurement, Verdict, broken, skipped

# Each module registers its laws, in the order in which they run.
for _module in (
    "running",
    "grids",
    "choices",
    "point_mass",
    "step_noise",
    "forward",
    "convergence",
    "equivalences",
    "state",
    "tensors",
    "random_numbers",
    "configs",
    "given_plans",
    "partial",
):
    import_module(f"pytest_diffusion.conformance.{_module}")

PROFILES = ("standard", "thorough")


def all_laws() -> list[Law]:
    """Every law, in the order in which they run."""
    return list(LAWS)


def scheduler_checks() -> list[str]:
    """Names of all checks, in the order in which they run."""
    return LAWS.names


def check_scheduler(
    scheduler_or_factory: Any,
    *,
    expected_failures: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
    raise_on_failure: bool = True,
    strict: bool = False,
    profile: str = "standard",
) -> list[Verdict]:
    """Compare a scheduler with exact solutions: one verdict for each check, in the order of the checks.

    `scheduler_or_factory` is a scheduler of diffusers or your own one, or a class or function that creates one; it is copied
    and does not change. `expected_failures` maps names of checks to the reason why they fail. Their failures do not raise; with
    `strict`, they raise if they pass. `only` chooses checks by name. The profile "thorough" also tries other configurations of
    the class and more numbers of steps, which takes minutes. Raises ConformanceFailure with all failures in one message (unless
    `raise_on_failure` is false), ValueError for unknown names, and TypeError for an object that is not a scheduler.
    """
    expected = dict(expected_failures or {})
    require_known("expected_failures", expected)
    suite = Suite(scheduler_or_factory, profile=profile, expected=expected)
    names = LAWS.names if only is None else [name for name in LAWS.names if name in require_known("only", only)]
    verdicts = [judged_with(suite.verdict(name), expected.get(name), strict=strict) for name in names]
    for verdict in verdicts:
        record(verdict)
    failed = [verdict for verdict in verdicts if verdict.gates]
    if failed and raise_on_failure:
        raise ConformanceFailure(suite.subject.name, failed)
    return verdicts


def require_known(what: str, names: Collection[str]) -> Collection[str]:
    """The unchanged names. Raises ValueError for an unknown check."""
    if isinstance(names, str):
        raise ValueError(f"{what} is the text {names!r}; expected a collection of names of checks.")
    for name in names:
        if name not in LAWS.names:
            raise ValueError(unknown_name(what, name, LAWS.names))
    return names


def judged_with(verdict: Verdict, reason: str | None, *, strict: bool) -> Verdict:
    """The verdict on a check whose failure is expected for `reason`; with `strict`, a pass becomes a failure."""
    if reason is None:
        return verdict
    if verdict.outcome == "fail":
        return replace(verdict, gates=False, message=f"{verdict.message}\nThis failure is expected: {reason}")
    if strict and verdict.outcome == "pass":
        message = f"{verdict.check} passes, though its failure is expected: {reason} Remove it from expected_failures."
        return replace(verdict, outcome="fail", gates=True, message=message)
    return verdict


class Suite:
    """All laws on one scheduler. A law uses the results of the laws that it depends on. Raises ValueError for an unknown profile."""

    def __init__(self, scheduler_or_factory: Any, *, profile: str = "standard", expected: Collection[str] = ()) -> None:
        if profile not in PROFILES:
            raise ValueError(unknown_name("profile", profile, PROFILES))
        self.subject = Subject(scheduler_or_factory)
        self.profile = profile
        self._expected = frozenset(expected)
        self._verdicts: dict[str, Verdict] = {}
        self._holds: dict[tuple[str, int], bool] = {}
        self._groundless: set[str] = set()

    def verdict(self, name: str) -> Verdict:
        """The verdict on one check, computed once."""
        if name not in self._verdicts:
            # Draws without a generator must not depend on the caller's random state, and must not change it.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self._verdicts[name] = self._judge(LAWS[name])
        return self._verdicts[name]

    def _judge(self, one: Law) -> Verdict:
        counts = [count for count in one.counts if all(self._rests(base, count) for base in one.rests_on)]
        if not counts:
            base = next(base for base in one.rests_on if base in self._groundless or self.verdict(base).outcome == "fail")
            self._groundless.add(one.name)
            return _skipped(one, f"{one.name} depends on `{base}`, which does not hold.")
        if not self.subject.counts(*counts):
            # A law that tested nothing must not pass.
            return _skipped(one, f"{self.subject.name} supports none of {', '.join(map(str, counts))} inference steps.")
        try:
            series = one.function(self.subject, counts) or {}
            if self.profile == "thorough":
                thorough_cases(one, self.subject)
        except NotApplicable as reason:
            return _skipped(one, str(reason))
        except (Broken, Crash) as error:
            if isinstance(error, Crash) and one.name != "runs" and self.verdict("runs").outcome != "pass":
                return _skipped(one, f"{one.name} could not be measured: {error} (see `runs`).")
            # The search for the smallest case may take longer than all laws; an expected failure is known already.
            describe = as_it_was_seen if one.name in self._expected else smallest
            return _failed(one, describe(one, self.subject, error))
        except Exception as error:
            # An error of the suite itself says nothing about the scheduler, so the check must not pass.
            return broken(one.name, f"{type(error).__name__}: {error}", lens="schedule", title=one.title, suite=SCHEDULER_CHECKS)
        measurement = Measurement(0, "violations", series=series, protocol={"scheduler": self.subject.name})
        return Verdict(one.name, "pass", f"{one.title}.", measurement, _limits(one), "schedule", one.title, False, SCHEDULER_CHECKS)

    def _rests(self, base: str, count: int) -> bool:
        """Whether the law `base`, on which another one depends, holds at a number of inference steps."""
        if self.verdict(base).outcome != "fail":
            return base not in self._groundless
        if (base, count) not in self._holds:
            try:
                LAWS[base].ground(self.subject, [max(count, min(LAWS[base].counts))])
                self._holds[base, count] = True
            except NotApplicable:
                self._holds[base, count] = True
            except (Broken, Crash):
                self._holds[base, count] = False
        return self._holds[base, count]


def _failed(one: Law, finding: Finding) -> Verdict:
    text = (
        f"{finding.name} fails `{one.name}`: {one.title}.\n"
        f"Expected: {finding.expected}.\nSeen: {finding.seen}.\n"
        f"Why: {one.reason} Source: {one.source}.\n"
        f"Smallest configuration: {finding.configuration}\nReproduce it:\n{finding.snippet}"
    )
    protocol = {"scheduler": finding.name, "configuration": finding.configuration, "snippet": finding.snippet}
    measurement = Measurement(1, "violations", series=finding.series, protocol=protocol, hint=finding.seen)
    return Verdict(one.name, "fail", text, measurement, _limits(one), "schedule", one.title, suite=SCHEDULER_CHECKS)


def _skipped(one: Law, reason: str) -> Verdict:
    return skipped(one.name, reason, lens="schedule", title=one.title, suite=SCHEDULER_CHECKS)


def _limits(one: Law) -> Limits:
    return Limits(at_most=0, source=one.source, where="scheduler conformance")
