"""Two revisions or two runtimes of one scheduler, held together: the same plans, samples, noising and partial runs, up to rounding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from pytest_diffusion.conformance import walking
from pytest_diffusion.conformance.calls import Crash, calling
from pytest_diffusion.conformance.noising import IMAGE_SHAPE, noised, some_image
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import as_values
from pytest_diffusion.verdicts.errors import ConformanceFailure, NotApplicable
from pytest_diffusion.verdicts.recording import record
from pytest_diffusion.verdicts.verdict import SCHEDULER_CHECKS, Limits, Measurement, Verdict, broken, skipped

COUNTS = (1, 2, 3, 5, 10, 20, 50)
ROUNDINGS = 64.0
"""Largest difference that is still rounding, in units of it."""
_SHAPE = (2, 4, 4, 4)
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Differs(Exception):  # noqa: N818 - a finding, not an error
    """Two schedulers differ. Fields: `where`, and the difference in units of rounding (infinite where they cannot be compared)."""

    def __init__(self, where: str, roundings: float) -> None:
        super().__init__(where)
        self.where, self.roundings = where, roundings


@dataclass(frozen=True)
class Pair:
    """Candidate and baseline in one configuration."""

    candidate: Subject
    baseline: Subject
    text: str
    largest: list[float]
    """The largest differences so far, in units of rounding."""
    allowed: float
    died: str = ""
    """Why the candidate does not exist in this configuration, where the baseline does."""

    def both(self) -> tuple[Subject, Subject]:
        """Candidate and baseline."""
        return self.candidate, self.baseline

    def require_near(self, own: torch.Tensor, other: torch.Tensor, what: str, dtype: torch.dtype = torch.float32) -> None:
        """Raise Differs at the first number that is off by more than rounding."""
        if own.shape != other.shape:
            raise Differs(f"{what}: the shapes are {tuple(own.shape)} and {tuple(other.shape)}", float("inf"))
        one, two = own.double().flatten(), other.double().flatten()
        # The tables of a schedule are float32, also where samples are float64.
        unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * two.abs().clamp(
            min=float(two.nan_to_num().abs().mean()) + 1e-12
        )
        gap = torch.where(one.isnan() & two.isnan() | (one == two), 0.0, (one - two).abs() / unit).nan_to_num(nan=float("inf"))
        self.largest.append(float(gap.max()) if len(gap) else 0.0)
        wrong = (gap > self.allowed).nonzero()
        if len(wrong):
            place = int(wrong[0])
            numbers = f"{float(one[place]):.9g} and not {float(two[place]):.9g}"
            raise Differs(f"{what}: number {place} is {numbers}, {float(gap[place]):.3g} roundings apart", float(gap.max()))


def check_equivalence(
    candidate: Any,
    baseline: Any,
    *,
    configurations: Sequence[Mapping[str, Any]] | None = None,
    num_inference_steps: Collection[int] = COUNTS,
    roundings: float = ROUNDINGS,
    raise_on_failure: bool = True,
) -> list[Verdict]:
    """Hold two schedulers together: a class before and after it was rewritten, or a port of it to another runtime.

    Both are schedulers, or classes or functions that create one. They are compared in their own configuration, and, where both are
    classes or have `from_config`, in others: `configurations` (arguments of the constructor), by default each common choice that both
    take. For each: the plans at `num_inference_steps`, all samples of a run on the same model outputs and draws, runs that start at
    later steps, noising, and four dtypes. A difference of up to `roundings` units of rounding is allowed.

    Returns a verdict for each of these. Raises ConformanceFailure, which names the first step and number that differ, unless
    `raise_on_failure` is false; ValueError for an empty list; TypeError for an object that is not a scheduler.
    """
    comparison = Comparison(candidate, baseline, configurations=configurations, counts=num_inference_steps, roundings=roundings)
    verdicts = [comparison.verdict(name) for name in COMPARISONS]
    for verdict in verdicts:
        record(verdict)
    failed = [verdict for verdict in verdicts if verdict.gates]
    if failed and raise_on_failure:
        raise ConformanceFailure(comparison.name, failed)
    return verdicts


class Comparison:
    """Two schedulers in all configurations; see `check_equivalence`. `arguments` are those of the constructors, where they are known."""

    def __init__(
        self,
        candidate: Any,
        baseline: Any,
        *,
        configurations: Sequence[Mapping[str, Any]] | None = None,
        counts: Collection[int] = COUNTS,
        roundings: float = ROUNDINGS,
        arguments: Sequence[Mapping[str, Any] | None] = (None, None),
    ) -> None:
        own, other = (Subject(one, arguments=known) for one, known in zip((candidate, baseline), arguments, strict=True))
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
    yield Pair(own, other, "", largest, allowed)
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
            yield Pair(_remade(own, changes), before, text, largest, allowed)
        except NotImplementedError:
            if configurations is not None:
                raise
        except Exception as error:
            yield Pair(own, before, text, largest, allowed, died=f"{type(error).__name__}: {error}")


def _remade(subject: Subject, changes: Mapping[str, Any]) -> Subject:
    made = Subject(subject.scheduler_class(**{**subject.arguments, **changes}))
    made.planned(made.some_count)
    return made


def _plans(pair: Pair, counts: Sequence[int]) -> None:
    if pair.died:
        raise Differs(f"the candidate alone refuses it: {pair.died}", float("inf"))
    for count in counts:
        plans = [_refused_or(subject, count) for subject in pair.both()]
        if any(plan is None for plan in plans):
            if plans[0] is not plans[1]:
                raise Differs(f"{count} inference steps are refused by {_who(pair, plans)} alone", float("inf"))
            continue
        for name in ("timesteps", "sigmas", "init_noise_sigma"):
            values = [getattr(plan, name, None) for plan in plans]
            if all(value is not None for value in values):
                own, other = (torch.as_tensor(as_values(value) if hasattr(value, "__len__") else value) for value in values)
                pair.require_near(torch.atleast_1d(own), torch.atleast_1d(other), f"{name} of {count} steps")


def _samples(pair: Pair, counts: Sequence[int]) -> None:
    for count in counts:
        _require_same_run(pair, count, 0, torch.float32)


def _partial(pair: Pair, counts: Sequence[int]) -> None:
    for count in (count for count in counts if 1 < count <= 10):
        for start in range(1, count):
            _require_same_run(pair, count, start, torch.float32)


def _dtypes(pair: Pair, counts: Sequence[int]) -> None:
    for dtype in _DTYPES[1:]:
        _require_same_run(pair, counts[len(counts) // 2], 0, dtype)


def _noising(pair: Pair, counts: Sequence[int]) -> None:
    methods = [subject.noising for subject in pair.both()]
    if any(method is None for method in methods):
        raise NotApplicable("one of them adds no noise.")
    image, noise = some_image(), walking.normal(*IMAGE_SHAPE)
    for count in counts:
        plans = [_refused_or(subject, count) for subject in pair.both()]
        if any(plan is None for plan in plans):
            continue
        for timestep in as_values(plans[1].timesteps):
            own, other = (noised(plan, str(method), image, noise, timestep.reshape(1)) for plan, method in zip(plans, methods, strict=True))
            pair.require_near(own, other, f"noising at timestep {float(timestep):g} of {count} steps")


Compare = Callable[[Pair, Sequence[int]], None]
COMPARISONS: dict[str, tuple[str, Compare]] = {
    "same_plans": ("timesteps, sigmas and the first noise are those of the baseline", _plans),
    "same_samples": ("each step gives the samples of the baseline", _samples),
    "same_partial_runs": ("runs that start at a later step give the samples of the baseline", _partial),
    "same_noising": ("noising gives the images of the baseline", _noising),
    "same_dtypes": ("float64, float16 and bfloat16 give the samples and the dtypes of the baseline", _dtypes),
}


def _require_same_run(pair: Pair, count: int, start: int, dtype: torch.dtype) -> None:
    """Raise Differs at the first step of a run, on the same outputs and draws, that differs."""
    if any(_refused_or(subject, count) is None for subject in pair.both()):
        return
    what = f"{count} steps" + (f" from step {start} on" if start else "") + (f" in {str(dtype)[6:]}" if dtype != torch.float32 else "")
    own, other = (_run(subject, count, start, dtype) for subject in pair.both())
    if isinstance(own, Crash) and isinstance(other, Crash):
        return  # both refuse it, or both have the defect
    if isinstance(own, Crash):
        raise Differs(f"{what}: the candidate alone dies: {own}", float("inf"))
    if isinstance(other, Crash):
        raise Differs(f"{what}: the baseline alone dies: {other}", float("inf"))
    for index, (one, two) in enumerate(zip_longest(own, other)):
        if one is None or two is None:
            raise Differs(f"{what}: the candidate takes {len(own)} steps and the baseline {len(other)}", float("inf"))
        if one.after.dtype != two.after.dtype:
            raise Differs(f"step {index} of {what}: the dtypes are {one.after.dtype} and {two.after.dtype}", float("inf"))
        pair.require_near(one.after, two.after, f"step {index} (timestep {float(two.timestep):g}) of {what}", dtype)


def _run(subject: Subject, count: int, start: int, dtype: torch.dtype) -> list[walking.Visit] | Crash:
    """A run from a step on, or how it died."""
    scheduler = subject.planned(count)
    first = (walking.normal(*_SHAPE) * float(getattr(scheduler, "init_noise_sigma", 1.0))).to(dtype)
    generator = torch.Generator().manual_seed(0)
    try:
        if start and hasattr(scheduler, "set_begin_index"):
            with calling(f"set_begin_index({start})", scheduler):
                scheduler.set_begin_index(start)
        return walking.walk(subject, scheduler, first, walking.smooth, first=start, generator=generator, replace=_Given(), **subject.noisy)
    except Crash as crash:
        return crash


class _Given:
    """Draws of both runs, the same in the same order, whatever draws them."""

    def __init__(self) -> None:
        self._drawn = 0

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        self._drawn += 1
        return torch.randn(values.shape, generator=torch.Generator().manual_seed(self._drawn), dtype=torch.float64)


def _refused_or(subject: Subject, count: int) -> Any:
    return subject.planned(count) if subject.counts(count) else None


def _who(pair: Pair, plans: Sequence[Any]) -> str:
    return "the candidate" if plans[0] is None else "the baseline"


def _judged(name: str, title: str, compare: Compare, pairs: Sequence[Pair], counts: Sequence[int], allowed: float) -> Verdict:
    limits = Limits(at_most=allowed, source="the caller's allowance for rounding", where="check_equivalence")
    first = pairs[0]
    names = f"{first.candidate.name} and its baseline {first.baseline.name}"
    looked, reasons, before = 0, [], len(first.largest)
    for pair in pairs:
        where = f" with {pair.text}" if pair.text else ""
        if pair.died and compare is not _plans:
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
        why = f"{names}: nothing could be compared, because both refuse {', '.join(map(str, counts))} inference steps, or both die."
        return broken(name, why, lens="schedule", title=title, suite=SCHEDULER_CHECKS)
    largest = max(compared)
    measurement = Measurement(largest, "largest difference", "roundings", protocol={"configurations": len(pairs), "steps": list(counts)})
    message = f"{title}, in {len(pairs)} configurations; the largest difference is {largest:.3g} roundings."
    return Verdict(name, "pass", message, measurement, limits, "schedule", title, False, SCHEDULER_CHECKS)


def _failed(name: str, title: str, limits: Limits, text: str, roundings: float) -> Verdict:
    measurement = Measurement(roundings, "largest difference", "roundings", hint=text)
    return Verdict(name, "fail", text, measurement, limits, "schedule", title, suite=SCHEDULER_CHECKS)
