"""`check_scheduler`: every law on one scheduler. Each verdict has the expected and the observed result, and code to reproduce it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from pytest_diffusion.conformance.adapters import Adapter, adapted
from pytest_diffusion.conformance.arrivals import hides_noise
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.conventions import settle_prediction_type
from pytest_diffusion.conformance.laws import LAWS, Broken, Law, Several, chosen_names, crash_of, death, findings_of, require_known
from pytest_diffusion.conformance.loops import other_form, refuses_output
from pytest_diffusion.conformance.outcomes import failed, judged_with, limits_of, not_applicable, unseen
from pytest_diffusion.conformance.shrink import Finding, as_it_was_seen, in_other_configurations, smallest
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.verdicts.errors import ConformanceFailure, NotApplicable, unknown_name
from pytest_diffusion.verdicts.recording import record
from pytest_diffusion.verdicts.verdict import SCHEDULER_CHECKS, Measurement, Verdict, broken

# Each module registers its laws, in the order in which they run.
for _module in (
    "running",
    "grids",
    "conditioning",
    "choices",
    "point_mass",
    "step_noise",
    "forward",
    "convergence",
    "equivalences",
    "state",
    "tensors",
    "random_numbers",
    "excursions",
    "configs",
    "given_plans",
    "partial",
):
    import_module(f"pytest_diffusion.conformance.{_module}")

PROFILES = ("standard", "thorough")
_OF_ONE_RUN = {
    *("runs", "timesteps_well_formed", "timesteps_cover", "sigmas_fall", "initial_noise", "timesteps_match_sigmas", "point_mass_preserved"),
    *("terminal_step", "noise_is_normal", "dtype_kept", "inputs_untouched", "named_betas", "named_spacing"),
}
"""Laws that compare no runs."""


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
    num_inference_steps: Collection[int] | None = None,
    plan: Mapping[str, Any] | None = None,
    step: Mapping[str, Any] | None = None,
    kind: str | None = None,
    prediction_type: str | None = None,
    names_end: bool = False,
    shape: Sequence[int] | None = None,
    adapt: Callable[[Any], Adapter] | None = None,
) -> list[Verdict]:
    """Compare a scheduler with exact solutions: one verdict for each check, in the order of the checks.

    `scheduler_or_factory` is a scheduler of diffusers or your own one, or a class or function that creates one; it is copied
    and does not change. `expected_failures` maps names of checks to the reason why they fail. Their failures do not raise; with
    `strict`, they raise if they pass or are skipped. `only` chooses checks by name. The profile "thorough" also tries other
    configurations of the class and more numbers of steps, which takes minutes. `num_inference_steps` are tried in place of each
    law's own numbers. `plan` and `step` are arguments that every `set_timesteps` and every `step` gets besides. `kind` ("vp",
    "sigma", "edm" or "flow") and `prediction_type` say what a scheduler's attributes do not tell, and its noising neither. With
    `names_end`, the last of n + 1 timesteps is the end of the plan, which its pipelines leave out. With a `shape` (N, ...), all samples
    have this one, but for N; each must have 1,024 elements or more, and be treated element by element. `adapt` makes an `Adapter` from
    a scheduler with another interface, for instance `KDiffusionSampler` from a sampler function; the adapter declares the rest.

    Raises ConformanceFailure with all failures in one message (unless `raise_on_failure` is false), ValueError for unknown names
    and empty lists, and TypeError for an object that is not a scheduler. If no check that was asked for had something to look
    at, the first one is `broken`, which is a failure.
    """
    expected = dict(expected_failures or {})
    require_known("expected_failures", expected)
    declared: dict[str, Any] = {
        "plan": plan,
        "step": step,
        "kind": kind,
        "prediction_type": prediction_type,
        "names_end": names_end,
        "shape": shape,
    }
    if adapt is not None:
        if given := [name for name, value in declared.items() if value]:
            raise ValueError(f"adapt and {', '.join(given)} are given; what an adapter drives is declared by the adapter.")
        scheduler_or_factory = adapted(scheduler_or_factory, adapt)
    suite = Suite(scheduler_or_factory, profile=profile, expected=expected, counts=num_inference_steps, **declared)
    found = [suite.verdict(name) for name in chosen_names(only)]
    verdicts = [judged_with(verdict, expected.get(verdict.check), strict=strict) for verdict in found]
    if all(verdict.outcome == "skipped" for verdict in verdicts):
        verdicts[0] = unseen(found[0], "no law" if only is None else "none of the chosen checks")
    for verdict in verdicts:
        record(verdict)
    gating = [verdict for verdict in verdicts if verdict.gates]
    if gating and raise_on_failure:
        raise ConformanceFailure(suite.subject.name, gating)
    return verdicts


class Suite:
    """All laws on one scheduler. A law uses the results of the laws that it depends on. Raises ValueError for an unknown profile."""

    def __init__(
        self,
        scheduler_or_factory: Any,
        *,
        profile: str = "standard",
        expected: Collection[str] = (),
        counts: Collection[int] | None = None,
        **declared: Any,
    ) -> None:
        if profile not in PROFILES:
            raise ValueError(unknown_name("profile", profile, PROFILES))
        if counts is not None and not counts:
            raise ValueError("num_inference_steps is empty; expected at least one number.")
        if counts is not None and min(counts) < 1:
            raise ValueError(f"num_inference_steps has {min(counts)}; expected numbers of at least 1.")
        self.subject = Subject(scheduler_or_factory, **declared)
        settle_prediction_type(self.subject)
        self.profile = profile
        self._counts = tuple(counts or ())
        self._expected = frozenset(expected)
        self._verdicts: dict[str, Verdict] = {}
        self._holds: dict[tuple[str, int], bool] = {}
        self._groundless: set[str] = set()
        self._deaths: set[tuple[str, ...]] = set()
        """The crashes that `runs` has reported."""

    def verdict(self, name: str) -> Verdict:
        """The verdict on one check, computed once."""
        if name not in self._verdicts:
            # Draws without a generator must not depend on the caller's random state, and must not change it.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self._verdicts[name] = self._judge(LAWS[name])
            if name == "runs" and self._verdicts[name].outcome == "skipped":
                self._verdicts[name] = self._unless_unseen(LAWS[name], self._verdicts[name])
        return self._verdicts[name]

    def _unless_unseen(self, one: Law, verdict: Verdict) -> Verdict:
        """The skipped verdict on `runs`, unless nothing else could look at the scheduler either."""
        if any(self.verdict(name).outcome != "skipped" for name in LAWS.names if name != one.name):
            return verdict
        return unseen(verdict)

    def _judge(self, one: Law) -> Verdict:
        try:
            return self._looked(one)
        except Exception as error:
            # An error of the suite itself says nothing about the scheduler, so the check must not pass.
            return broken(one.name, f"{type(error).__name__}: {error}", lens="schedule", title=one.title, suite=SCHEDULER_CHECKS)

    def _looked(self, one: Law) -> Verdict:
        wanted: Sequence[int] = self._counts or (*one.counts, *one.more(self.subject))
        if max(wanted) < one.least:
            return not_applicable(one, f"{one.name} looks at plans of at least {one.least} inference steps.")
        wanted = [count for count in wanted if count >= one.least]
        counts = [count for count in wanted if all(self._rests(base, count) for base in one.rests_on)]
        if not counts:
            base = next(base for base in one.rests_on if base in self._groundless or self.verdict(base).outcome == "fail")
            self._groundless.add(one.name)
            return not_applicable(one, f"{one.name} depends on `{base}`, which does not hold.")
        if one.name not in _OF_ONE_RUN and hides_noise(self.subject):
            return not_applicable(one, f"{self.subject.name} adds noise that torch does not draw, so its runs cannot be compared.")
        try:
            # Some classes are made for a few numbers of steps only.
            counts = counts if self.subject.counts(*counts) or self._counts else [self.subject.some_count]
            # A law that tested nothing must not pass.
            if not self.subject.counts(*counts):
                return not_applicable(one, f"{self.subject.name} supports none of {', '.join(map(str, counts))} inference steps.")
            if max(counts) < one.least:
                return not_applicable(one, f"{one.name} looks at plans of at least {one.least} inference steps.")
            series = one.function(self.subject, counts) or {}
            elsewhere = in_other_configurations(one, self.subject, self._holds_in(one)) if self.profile == "thorough" else None
            if elsewhere is not None:
                return failed(one, [self._described(one, *elsewhere)])
        except NotApplicable as reason:
            return not_applicable(one, str(reason))
        except (Broken, Crash, Several) as error:
            told = [finding for finding in findings_of(error) if not self._refuses(finding)]
            if not told:
                return not_applicable(one, other_form(self.subject, findings_of(error)[0]))
            found = [finding for finding in told if not self._is_told(one, finding, counts)]
            if not found:
                return not_applicable(one, f"{one.name} could not be measured: {told[0]} (see `runs`).")
            if one.name == "runs":
                self._deaths = {death(crash) for crash in map(crash_of, found) if crash is not None}
            return failed(one, [self._described(one, self.subject, finding) for finding in found])
        refused = self.subject.refused(*counts) if one.name == "runs" else {}
        text = f" It refuses {', '.join(map(str, refused))} steps: {next(iter(refused.values()))}" if refused else ""
        protocol: dict[str, Any] = {"scheduler": self.subject.name} | ({"refused": list(refused)} if refused else {})
        measurement = Measurement(0, "violations", series=series, protocol=protocol)
        return Verdict(one.name, "pass", f"{one.title}.{text}", measurement, limits_of(one), "schedule", one.title, False, SCHEDULER_CHECKS)

    def _described(self, one: Law, subject: Subject, finding: Broken | Crash) -> Finding:
        # The search for the smallest case may take longer than all laws; an expected failure is known already.
        if one.name not in self._expected:
            try:
                return smallest(one, subject, finding)
            except Exception:  # noqa: S110 - a broken scheduler may break the search too
                pass
        return as_it_was_seen(one, subject, finding)

    def _refuses(self, finding: Broken | Crash) -> bool:
        """Whether a finding is a refusal of the model's output, which has another form for this scheduler."""
        crash = crash_of(finding)
        return crash is not None and refuses_output(self.subject, crash)

    def _is_told(self, one: Law, finding: Broken | Crash, counts: Sequence[int]) -> bool:
        """Whether a finding is a crash that `runs` reports."""
        if one.name == "runs" or (crash := crash_of(finding)) is None:
            return False
        self.verdict("runs")
        return death(crash) in self._deaths or (isinstance(finding, Crash) and not all(self._rests("runs", count) for count in counts))

    def _rests(self, base: str, count: int) -> bool:
        """Whether the law `base`, on which another one depends, holds at a number of inference steps."""
        if self.verdict(base).outcome != "fail":
            return base not in self._groundless
        own = LAWS[base].counts
        if base != "runs" or count in own or count == self.subject.num_train_timesteps:
            return self._holds_at(base, count)
        # Between two numbers at which it runs, it is taken to run: else a law of many numbers costs minutes.
        below = max(one for one in own if one < count)
        above = min((one for one in own if one > count), default=below)
        return self._holds_at(base, below) and self._holds_at(base, above)

    def _holds_at(self, base: str, count: int) -> bool:
        if (base, count) not in self._holds:
            self._holds[base, count] = _holds(LAWS[base], self.subject, count)
        return self._holds[base, count]

    def _holds_in(self, one: Law) -> Callable[[Subject, int], bool]:
        """Whether all laws on which one depends hold in another configuration."""
        return lambda other, count: all(_holds(LAWS[base], other, count) for base in _all_bases(one))


def _all_bases(one: Law) -> list[str]:
    """The laws on which a law depends, directly or not."""
    found: dict[str, None] = {}
    for base in one.rests_on:
        found |= dict.fromkeys([*_all_bases(LAWS[base]), base])
    return list(found)


def _holds(one: Law, subject: Subject, count: int) -> bool:
    """Whether a law's ground holds at a number of steps, or says nothing."""
    try:
        one.ground(subject, [max(count, min(one.counts))])
    except NotApplicable:
        return True
    except (Broken, Crash, Several):
        return False
    return True
