"""Two revisions or two runtimes of one scheduler, held together: the same plans, samples, noising and partial runs, up to rounding."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.comparisons import COMPARISONS, Compare, Differs, Pair
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.verdicts.errors import ConformanceFailure, NotApplicable
from pytest_diffusion.verdicts.recording import record
from pytest_diffusion.verdicts.verdict import SCHEDULER_CHECKS, Limits, Measurement, Verdict, broken, skipped

COUNTS = (1, 2, 3, 5, 10, 20, 50)
ROUNDINGS = 64.0
"""Largest difference that is still rounding, in units of it."""


def check_equivalence(
    candidate: Any,
    baseline: Any,
    *,
    configurations: Sequence[Mapping[str, Any]] | None = None,
    num_inference_steps: Collection[int] = COUNTS,
    roundings: float = ROUNDINGS,
    raise_on_failure: bool = True,
    plan: Mapping[str, Any] | None = None,
    step: Mapping[str, Any] | None = None,
    names_end: bool = False,
) -> list[Verdict]:
    """Hold two schedulers together: a class before and after it was rewritten, or a port of it to another runtime.

    Both are schedulers, or classes or functions that create one. They are compared in their own configuration, and, where both are
    classes or have `from_config`, in others: `configurations` (arguments of the constructor), by default each common choice that both
    take. For each: the plans at `num_inference_steps`, all samples of a run on the same model outputs and draws, runs that start at
    later steps, noising, and four dtypes. A difference of up to `roundings` units of rounding is allowed. `plan`, `step` and
    `names_end` are those of `check_scheduler`, for both.

    Returns a verdict for each of these. Raises ConformanceFailure, which names the first step and number that differ, unless
    `raise_on_failure` is false; ValueError for an empty list; TypeError for an object that is not a scheduler.
    """
    declared: dict[str, Any] = {"plan": plan, "step": step, "names_end": names_end}
    comparison = Comparison(candidate, baseline, configurations=configurations, counts=num_inference_steps, roundings=roundings, **declared)
    verdicts = [comparison.verdict(name) for name in COMPARISONS]
    for verdict in verdicts:
        record(verdict)
    failed = [verdict for verdict in verdicts if verdict.gates]
    if failed and raise_on_failure:
        raise ConformanceFailure(comparison.name, failed)
    return verdicts


class Comparison:
    """Two schedulers in all configurations; see `check_equivalence`.

    `arguments` are those of the constructors, where they are known; what is `declared` are arguments of both subjects.
    """

    def __init__(
        self,
        candidate: Any,
        baseline: Any,
        *,
        configurations: Sequence[Mapping[str, Any]] | None = None,
        counts: Collection[int] = COUNTS,
        roundings: float = ROUNDINGS,
        arguments: Sequence[Mapping[str, Any] | None] = (None, None),
        **declared: Any,
    ) -> None:
        own, other = (Subject(one, arguments=known, **declared) for one, known in zip((candidate, baseline), arguments, strict=True))
        self.name = own.name
        self._pairs = list(_pairs(own, other, configurations, roundings))
        if not counts:
            raise ValueError("num_inference_steps is empty; expected at least one number.")
        self._counts, self._roundings = sorted(set(counts)), roundings

    def verdict(self, name: str) -> Verdict:
        """The verdict on one of `COMPARISONS`."""
        title, compare = COMPARISONS[name]
        return _judged(name, title, compare, self._pairs, self._counts, self._roundings)


def _pairs(own: Subject, other: Subject, configurations: Sequence[Mapping[str, Any]] | None, allowed: float) -> Iterator[Pair]:
    largest: list[float] = []
    deaths: list[str] = []
    yield Pair(own, other, "", largest, deaths, allowed)
    known = [inspect.signature(subject.scheduler_class).parameters for subject in (own, other)]
    wanted: Sequence[Mapping[str, Any]] = configurations or []
    if configurations is None:
        from pytest_diffusion.conformance.strategies import CHOICES

        own_ones = [(name, values) for name, values in CHOICES.items() if all(name in one for one in known)]
        wanted = [{name: value} for name, values in own_ones for value in values if value != known[0][name].default]
    for changes in wanted:
        text = ", ".join(f"{key}={value!r}" for key, value in changes.items())
        try:
            before = _remade(other, changes)
        except Exception:
            if configurations is not None:
                raise
            continue  # a choice that the baseline refuses
        try:
            yield Pair(_remade(own, changes), before, text, largest, deaths, allowed)
        except NotImplementedError:
            if configurations is not None:
                raise
        except Exception as error:
            yield Pair(own, before, text, largest, deaths, allowed, died=f"{type(error).__name__}: {error}")


def _remade(subject: Subject, changes: Mapping[str, Any]) -> Subject:
    made = Subject(subject.scheduler_class(**{**subject.arguments, **changes}), **subject.declared)
    made.planned(made.some_count)
    return made


def _judged(name: str, title: str, compare: Compare, pairs: Sequence[Pair], counts: Sequence[int], allowed: float) -> Verdict:
    limits = Limits(at_most=allowed, source="the caller's allowance for rounding", where="check_equivalence")
    first = pairs[0]
    names = f"{first.candidate.name} and its baseline {first.baseline.name}"
    looked, reasons, before, died_before = 0, [], len(first.largest), len(first.deaths)
    for pair in pairs:
        where = f" with {pair.text}" if pair.text else ""
        if pair.died and name != "same_plans":
            continue
        try:
            compare(pair, counts)
            looked += 1
        except NotApplicable as reason:
            reasons.append(str(reason))
        except Crash as crash:
            return _failed(name, title, limits, f"{names} cannot be compared{where}: {crash}", float("inf"))
        except Differs as found:
            return _failed(name, title, limits, f"{names} differ{where}. {found.where[:1].upper()}{found.where[1:]}.", found.roundings)
    compared = first.largest[before:]
    if not looked and reasons:
        return skipped(name, f"{names}: {reasons[0]}", lens="schedule", title=title, suite=SCHEDULER_CHECKS)
    if not compared:
        deaths = first.deaths[died_before:]
        because = f"both die. {deaths[0]}" if deaths else f"both refuse {', '.join(map(str, counts))} inference steps."
        why = f"{names}: nothing could be compared, because {because}"
        return broken(name, why, lens="schedule", title=title, suite=SCHEDULER_CHECKS)
    largest = max(compared)
    measurement = Measurement(largest, "largest difference", "roundings", protocol={"configurations": looked, "steps": list(counts)})
    message = f"{title}, in {looked} configurations; the largest difference is {largest:.3g} roundings."
    return Verdict(name, "pass", message, measurement, limits, "schedule", title, False, SCHEDULER_CHECKS)


def _failed(name: str, title: str, limits: Limits, text: str, roundings: float) -> Verdict:
    measurement = Measurement(roundings, "largest difference", "roundings", hint=text)
    return Verdict(name, "fail", text, measurement, limits, "schedule", title, suite=SCHEDULER_CHECKS)
