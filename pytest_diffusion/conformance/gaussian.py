"""Gaussian data, for which one loop gives the exact mean and variance of all samples.

If the denoiser is affine, all known solvers are affine in the sample and in the noise: a row starts at the mean, a row one deviation away,
and each further row gets one draw of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.arrivals import restarts
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.levels import NoiseLevel
from pytest_diffusion.models.schedulers import evaluations_per_step
from pytest_diffusion.verdicts.errors import NotApplicable

MEAN = 0.2
VARIANCES = torch.tensor([0.6, 0.36, 0.2], dtype=torch.float64)
"""Small enough for x̂₀ to stay within [−1, 1], where clipping and thresholding have no effect."""
_LEAST_RATIO = 0.3
"""Smallest σ/α at which errors are measured: below it, steps between whole timesteps are too large to show an order."""


_LONG_ENOUGH = 20
"""Steps of a plan that goes back up, if plans do so at all: short ones may not."""


class Moments(NamedTuple):
    """Error of mean and standard deviation at a noise level σ/α, in units of the true standard deviation."""

    ratio: float
    error: float


def _moments(subject: Subject, count: int, rows: int, extras: Mapping[str, Any], scheduler: Any = None) -> list[Moments]:
    drawn = 0

    def start(level: NoiseLevel) -> torch.Tensor:
        sample = (level.alpha * MEAN) * torch.ones(rows, 1, 1, len(VARIANCES), dtype=torch.float64)
        sample[1] += _deviation(level)
        return sample.float()

    def replace(values: torch.Tensor) -> torch.Tensor:
        nonlocal drawn
        ones = torch.zeros_like(values)
        if drawn + 2 < len(ones):
            ones[drawn + 2] = 1
        drawn += 1
        return ones

    scheduler = subject.planned(count) if scheduler is None else scheduler
    generator = torch.Generator().manual_seed(0)
    # Two rows: no step draws.
    found = loops.run(
        subject, count, posterior_mean, start, replace=replace, generator=generator, scheduler=scheduler, records=rows > 2, **extras
    )
    moments = []
    # States inside a Runge-Kutta step are of lower order by design.
    order = evaluations_per_step(subject.scheduler)
    blocks = getattr(scheduler, "order_list", None)
    states = list(zip(found.steps, found.levels[1:], strict=True))
    # So are those inside a block of a single-step solver: a block ends before each step of order 1.
    ends = (
        states[order - 1 : -1 : order] if blocks is None else [states[place - 1] for place in range(1, len(states)) if blocks[place] == 1]
    )
    for step, level in ends:
        rows_of = step.after.double()
        mean, deviation = rows_of[0], (rows_of[1:] - rows_of[0]).square().sum(0).sqrt()
        true = _deviation(level)
        error = torch.maximum((deviation / true - 1).abs(), (mean - level.alpha * MEAN).abs() / true)
        ratio = float(level.sigma / level.alpha) if float(level.alpha) > 0 else math.inf
        moments.append(Moments(ratio, float(error.max()) if bool(error.isfinite().all()) else math.inf))
    return moments


def posterior_mean(sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """E[x₀ | sample] for independent normal data of mean 0.2 whose last dimension has the three `VARIANCES`."""
    gain = level.alpha * VARIANCES / (level.alpha.square() * VARIANCES + level.sigma.square())
    return MEAN + gain * (sample.double() - level.alpha * MEAN)


def _deviation(level: NoiseLevel) -> torch.Tensor:
    return (level.alpha.square() * VARIANCES + level.sigma.square()).sqrt()


def noise_per_step(subject: Subject, extras: Mapping[str, Any]) -> int:
    """Largest number of draws in one step of a short loop; 0 where the samples do not depend on them."""
    if subject.is_inverse:
        raise NotApplicable(f"{subject.name} goes from clean to noisy: see `inversion_round_trip`.")
    if subject.is_adapted and subject.scheduler.has_uneven_steps:
        raise NotApplicable(f"{subject.name} has steps of different numbers of evaluations, so that an order of them is not defined.")
    if restarts(subject, _LONG_ENOUGH):
        raise NotApplicable(f"{subject.name} goes back up with new noise (restart), so its error has no order.")
    found = loops.run(subject, subject.some_count, lambda sample, level: torch.zeros_like(sample), loops.sample_of((1, 1, 2, 2)), **extras)
    draws = max(len(one.draws) for one in found.steps)
    return draws if draws and uses_draws(subject, subject.some_count, **extras) else 0


def uses_draws(subject: Subject, count: int, **extras: Any) -> bool:
    """Whether the samples of a loop depend on its draws."""
    zeros, ones = (
        torch.stack(loops.states(subject, count, walking.normal(2, 4, 4, 4), replace=values, **extras))
        for values in (torch.zeros_like, torch.ones_like)
    )
    return not torch.equal(zeros, ones)


def states_of(subject: Subject, count: int, extras: Mapping[str, Any], plan: Callable[[], Any] | None = None) -> list[Moments]:
    """Errors at the states of a loop with σ/α of at least 0.3; `plan` makes another scheduler for it."""
    draws = noise_per_step(subject, extras)
    rows = 2 + draws * evaluations_per_step(subject.scheduler) * count
    scheduler = plan() if plan is not None else None
    found = [one for one in _moments(subject, count, rows if draws else 2, extras, scheduler) if one.ratio >= _LEAST_RATIO]
    if not found:
        raise NotApplicable(f"{subject.name} has no state of σ/α above {_LEAST_RATIO} after its first in {count} steps.")
    return found
