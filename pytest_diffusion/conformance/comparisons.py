"""What is compared of two revisions of one scheduler: plans, samples, partial runs, noising and dtypes, each up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from pytest_diffusion.conformance import walking
from pytest_diffusion.conformance.calls import Crash, calling
from pytest_diffusion.conformance.noising import IMAGE_SHAPE, noised, some_image
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import as_values
from pytest_diffusion.verdicts.errors import NotApplicable

_SHAPE = (2, 4, 4, 4)
_DTYPES = (torch.float64, torch.float16, torch.bfloat16)
_MOST_PARTIAL = 10


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
    deaths: list[str]
    """What both cannot do so far."""
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
        size = two[two.isfinite()].abs()
        least = (float(size.mean()) if len(size) else 0.0) + 1e-12
        unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * two.abs().clamp(min=least)
        gap = torch.where(one.isnan() & two.isnan() | (one == two), 0.0, (one - two).abs() / unit).nan_to_num(nan=float("inf"))
        self.largest.append(float(gap.max()) if len(gap) else 0.0)
        wrong = (gap > self.allowed).nonzero()
        if len(wrong):
            place = int(wrong[0])
            numbers = f"{float(one[place]):.9g} and not {float(two[place]):.9g}"
            raise Differs(f"{what}: number {place} is {numbers}, {float(gap[place]):.3g} roundings apart", float(gap.max()))


def _plans(pair: Pair, counts: Sequence[int]) -> None:
    if pair.died:
        raise Differs(f"the candidate alone refuses it: {pair.died}", float("inf"))
    for count in counts:
        accepts = [bool(subject.counts(count)) for subject in pair.both()]
        if accepts[0] != accepts[1]:
            raise Differs(f"{count} inference steps are refused by the {'baseline' if accepts[0] else 'candidate'} alone", float("inf"))
    for count, plans in _planned(pair, counts):
        for name in ("timesteps", "sigmas", "init_noise_sigma"):
            values = [getattr(plan, name, 1.0 if name == "init_noise_sigma" else None) for plan in plans]
            if all(value is not None for value in values):
                own, other = (torch.as_tensor(as_values(value) if hasattr(value, "__len__") else value) for value in values)
                pair.require_near(torch.atleast_1d(own), torch.atleast_1d(other), f"{name} of {count} steps")


def _samples(pair: Pair, counts: Sequence[int]) -> None:
    for count in counts:
        _require_same_run(pair, count, 0, torch.float32)


def _partial(pair: Pair, counts: Sequence[int]) -> None:
    few = [count for count in counts if 1 < count <= _MOST_PARTIAL]
    if not few:
        raise NotApplicable(f"runs that start at a later step are compared at 2 to {_MOST_PARTIAL} inference steps.")
    for count in few:
        for start in range(1, count):
            _require_same_run(pair, count, start, torch.float32)


def _dtypes(pair: Pair, counts: Sequence[int]) -> None:
    for dtype in _DTYPES:
        # The rounding of other configurations is that of this one.
        for count in counts[len(counts) // 2 :][:1] if pair.text else counts:
            _require_same_run(pair, count, 0, dtype)


def _noising(pair: Pair, counts: Sequence[int]) -> None:
    methods = [_or_crash(subject.noising_method) for subject in pair.both()]
    if any(isinstance(method, Crash) for method in methods):
        _require_same_death(pair, "noising", *methods)
        return
    image, noise = some_image(), walking.normal(*IMAGE_SHAPE)
    for count, plans in _planned(pair, counts):
        for timestep in as_values(plans[1].timesteps):
            what = f"noising at timestep {float(timestep):g} of {count} steps"
            own, other = (
                _or_crash(noised, plan, method, image, noise, timestep.reshape(1)) for plan, method in zip(plans, methods, strict=True)
            )
            if isinstance(own, Crash) or isinstance(other, Crash):
                _require_same_death(pair, what, own, other)
            else:
                pair.require_near(own, other, what)


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
    if not all(subject.counts(count) for subject in pair.both()):
        return  # `same_plans` says so
    what = f"{count} steps" + (f" from step {start} on" if start else "") + (f" in {str(dtype)[6:]}" if dtype != torch.float32 else "")
    # As users call it, and with all noise that it can add.
    for with_noise in [False, True] if pair.candidate.noisy or pair.baseline.noisy else [False]:
        own, other = (_or_why(subject, count, start, dtype, subject.noisy if with_noise else {}) for subject in pair.both())
        shown = f"{what}, {_shown(pair.baseline.noisy or pair.candidate.noisy)}" if with_noise else what
        if isinstance(own, NotApplicable) or isinstance(other, NotApplicable):
            _require_same_refusal(shown, own, other)
        else:
            _require_same(pair, shown, own, other, dtype)


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


_Ran = list[walking.Visit] | Crash | NotApplicable


def _or_why(subject: Subject, count: int, start: int, dtype: torch.dtype, arguments: Mapping[str, Any]) -> _Ran:
    """A run, how it died, or why a loop cannot drive the scheduler."""
    try:
        subject.require_plain_step()
        return _run(subject, count, start, dtype, arguments)
    except (Crash, NotApplicable) as reason:
        return reason


def _require_same_refusal(what: str, own: _Ran, other: _Ran) -> None:
    """Raise NotApplicable where a loop can drive neither, and Differs where it can drive one."""
    if isinstance(own, NotApplicable) and isinstance(other, NotApplicable):
        raise other
    alone, why = ("candidate", own) if isinstance(own, NotApplicable) else ("baseline", other)
    raise Differs(f"{what}: the {alone} alone cannot be driven: {why}", float("inf"))


def _require_same(pair: Pair, what: str, own: list[walking.Visit] | Crash, other: list[walking.Visit] | Crash, dtype: torch.dtype) -> None:
    if isinstance(own, Crash) or isinstance(other, Crash):
        _require_same_death(pair, what, own, other)
        return
    for index, (one, two) in enumerate(zip_longest(own, other)):
        if one is None or two is None:
            raise Differs(f"{what}: the candidate takes {len(own)} steps and the baseline {len(other)}", float("inf"))
        if one.after.dtype != two.after.dtype:
            raise Differs(f"step {index} of {what}: the dtypes are {one.after.dtype} and {two.after.dtype}", float("inf"))
        where = f"step {index} (timestep {float(two.timestep):g}) of {what}"
        pair.require_near(one.after, two.after, where, dtype)
        if one.clean is not None and two.clean is not None and dtype == torch.float32:
            pair.require_near(one.clean, two.clean, f"pred_original_sample of {where}", dtype)


def _require_same_death(pair: Pair, what: str, own: Any, other: Any) -> None:
    """Raise Differs if one of them alone is a crash; that both are is remembered."""
    for alone, one, two in (("candidate", own, other), ("baseline", other, own)):
        if isinstance(one, Crash) and not isinstance(two, Crash):
            raise Differs(f"{what}: the {alone} alone dies: {one}", float("inf"))
    pair.deaths.append(f"{what}: {own}")


def _planned(pair: Pair, counts: Sequence[int]) -> Iterator[tuple[int, list[Any]]]:
    """Both plans of each number of steps that both accept. Raises Differs if one alone dies."""
    for count in counts:
        if all(subject.counts(count) for subject in pair.both()):
            plans = [_or_crash(subject.planned, count) for subject in pair.both()]
            if any(isinstance(plan, Crash) for plan in plans):
                _require_same_death(pair, f"{count} steps", *plans)
            else:
                yield count, plans


def _or_crash(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, or how it died."""
    try:
        return function(*arguments)
    except Crash as crash:
        return crash


def _run(subject: Subject, count: int, start: int, dtype: torch.dtype, arguments: Mapping[str, Any]) -> list[walking.Visit]:
    """A run from a step on."""
    scheduler = subject.planned(count)
    first = (walking.normal(*_SHAPE) * float(getattr(scheduler, "init_noise_sigma", 1.0))).to(dtype)
    if start and hasattr(scheduler, "set_begin_index"):
        with calling(f"set_begin_index({start})", scheduler):
            scheduler.set_begin_index(start)
    generator = torch.Generator().manual_seed(0)
    return walking.walk(subject, scheduler, first, walking.smooth, first=start, generator=generator, replace=_Given(), **arguments)


class _Given:
    """Draws of both runs, the same in the same order, whatever draws them."""

    def __init__(self) -> None:
        self._drawn = 0

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        self._drawn += 1
        return torch.randn(values.shape, generator=torch.Generator().manual_seed(self._drawn), dtype=torch.float64)
