"""Laws of the inference grid: timesteps and sigmas are well formed, cover the schedule and agree with each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.arrivals import restarts
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.flow_grid import SHAPES, require_training_grid, without_repeats
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import (
    as_values,
    attribute,
    config_value,
    evaluations_per_step,
    has_own_sigma_range,
    is_flow,
    revisits_timesteps,
)
from pytest_diffusion.verdicts.errors import NotApplicable


@law(
    "timesteps are counted, ordered and in range",
    source="diffusers' scheduler interface",
    counts=(*range(1, 101), 333, 999, 1000),
    more=lambda subject: _badly_rounded(subject.num_train_timesteps),
)
def timesteps_well_formed(subject: Subject, counts: Sequence[int]) -> None:
    """`set_timesteps(n)` must give n timesteps (order·n if a step evaluates the model more than once).

    They must lie inside the training schedule, and decrease without repetition.
    """
    loops.require_levels(subject)
    for count in subject.counts(*counts):
        scheduler = subject.seen_plan(count)
        timesteps = as_values(scheduler.timesteps).to("cpu", torch.float64)
        if not bool(torch.isfinite(timesteps).all()):
            raise Broken("finite timesteps", walking.unfit(timesteps), count=count)
        if not revisits_timesteps(scheduler):
            try:
                _require_count_and_order(subject, scheduler, timesteps, count)
            except Broken:
                if not restarts(subject, min(count, _FEW)):
                    raise
        if not subject.is_adapted and (not has_own_sigma_range(scheduler) or is_flow(scheduler)):
            # If the table starts with a clean entry, timesteps are counted from 1.
            alphas = getattr(scheduler, "alphas_cumprod", None)
            table = 0 if alphas is None else len(alphas)
            top = subject.num_train_timesteps if subject.kind == "flow" else max(subject.num_train_timesteps, table) - 1
            outside = timesteps[(timesteps < 0) | (timesteps > top)]
            if len(outside):
                raise Broken(f"timesteps from 0 to {top}", f"timestep {float(outside[0]):g}", count=count)


_FEW = 30
"""Most steps at which a plan that goes back up is followed: a class that restarts is one that restarts there."""
_MISNAMED = (
    "; pipelines take `order` for the number of evaluations of the model in a step, and start image-to-image at number order·k;"
    " the order of a solver that evaluates once is `solver_order`"
)


def _badly_rounded(total: int) -> list[int]:
    """Numbers of steps at which a range from `total` down to 0 by total/n has n + 1 entries, because total/n is rounded."""
    return [count for count in range(1, total + 1) if math.ceil(total / (total / count)) != count]


@law(
    "timesteps cover the training schedule evenly",
    source="Common Diffusion Noise Schedules, arXiv:2305.08891, table 2",
    counts=(2, 3, 4, 7, 10, 20, 30, 50, 100),
    rests_on=("timesteps_well_formed",),
)
def timesteps_cover(subject: Subject, counts: Sequence[int]) -> None:
    """Evenly spaced timesteps must have no gap of more than twice the average gap.

    This includes the gaps before the first timestep and after the last one.
    """
    loops.require_levels(subject)
    if subject.kind == "flow" and not config_value(subject.scheduler, "use_flow_sigmas"):
        require_training_grid(subject)
        return
    shaped = [name for name in SHAPES if config_value(subject.scheduler, name)]
    if subject.has_readings:
        raise NotApplicable(f"{subject.name} has timesteps that are no entries of a table.")
    if shaped or has_own_sigma_range(subject.scheduler) or subject.kind == "flow":
        raise NotApplicable(f"{subject.name} spaces its sigmas {'by ' + shaped[0] if shaped else 'evenly'}, not its timesteps.")
    has_sigmas = getattr(subject.planned(subject.some_count), "sigmas", None) is not None
    if subject.is_inverse or (has_sigmas and not config_value(subject.scheduler, "timestep_spacing")):
        raise NotApplicable(f"{subject.name} does not declare evenly spaced timesteps from noisy to clean.")
    total = subject.num_train_timesteps
    for count in subject.counts(*counts):
        grid = as_values(subject.planned(count).timesteps).to("cpu", torch.float64).unique().flip(0).tolist()
        if _is_leading(subject, grid, count):
            continue
        for above, below in pairwise([float(total), *grid, 0.0]):
            # Rounding and an offset may add one timestep each.
            if above - below > 2 * total / count + 2:
                seen = f"no timestep between {above:g} and {below:g}"
                raise Broken(f"gaps of about {total / count:.4g} between {count} timesteps of {total}", seen, count=count)


@law(
    "sigmas fall at every step",
    source="Karras et al. 2022, arXiv:2206.00364, equation 5",
    counts=(2, 3, 5, 7, 10, 20, 50, 200, 1000),
    least=2,
    rests_on=("runs", "timesteps_well_formed"),
)
def sigmas_fall(subject: Subject, counts: Sequence[int]) -> None:
    """Each step must remove noise, so the sigmas must decrease strictly from one step to the next."""
    loops.require_levels(subject)
    if attribute(subject.scheduler, "sigmas") is None and getattr(_planned(subject, subject.some_count), "sigmas", None) is None:
        raise NotApplicable(f"{subject.name} has no sigmas.")
    for count in subject.counts(*counts):
        scheduler = _planned(subject, count)
        sigmas = as_values(scheduler.sigmas).to("cpu", torch.float64)
        is_other = subject.has_readings and len(sigmas) not in (len(scheduler.timesteps), len(scheduler.timesteps) + 1)
        if is_other or len(sigmas) == subject.num_train_timesteps != len(scheduler.timesteps):
            raise NotApplicable(f"{subject.name} has the sigmas of training, not of the inference plan.")
        if not bool(torch.isfinite(sigmas).all()):
            raise Broken("finite sigmas", walking.unfit(sigmas), count=count)
        # Of a flow whose time rises towards the data, sigmas may be that time, or the noise.
        if subject.is_inverse or (subject.has_readings and subject.rises and float(sigmas[0]) < float(sigmas[-1])):
            sigmas = sigmas.flip(0)
        # A step of a higher order may use the same sigma for several evaluations.
        distinct = sigmas if evaluations_per_step(scheduler) == 1 else without_repeats(sigmas)
        rises = (distinct[1:] >= distinct[:-1]).nonzero()
        if len(rises):
            place = int(rises[0])
            pair = f"sigma {float(distinct[place]):.6g} is followed by {float(distinct[place + 1]):.6g}"
            seen = f"{pair} (number {place} and {place + 1} of {len(distinct)})"
            raise Broken("sigmas that fall at every step", seen, count=count)
        if evaluations_per_step(scheduler) > 1 and len(distinct) < count:
            raise Broken(f"at least {count} different sigmas", f"{len(distinct)}", count=count)


@law(
    "the first noise has the size of the first level",
    source="Karras et al. 2022, arXiv:2206.00364, algorithm 1, line 2",
    counts=(2, 5, 20),
    rests_on=("runs", "sigmas_fall"),
)
def initial_noise(subject: Subject, counts: Sequence[int]) -> None:
    """`init_noise_sigma` must be 1 for variance-preserving and flow schedules, otherwise the first sigma, or √(σ² + 1) with the image.

    Pipelines multiply the first noise by it. With another value, the first sample has a wrong noise level.
    """
    loops.require_levels(subject)
    if not hasattr(subject.planned(subject.some_count), "init_noise_sigma") or subject.is_inverse:
        raise NotApplicable(f"{subject.name} has no init_noise_sigma, or starts from an image.")
    for count in subject.counts(*counts):
        scheduler = subject.planned(count)
        sigma = float(loops.level_before(subject, scheduler, 0).sigma)
        low, high = (sigma, (sigma**2 + 1) ** 0.5) if subject.kind in ("sigma", "edm") else (1.0, 1.0)
        low = min(sigma, 1.0) if subject.kind == "flow" else low  # the first level of a flow may hold a share of the image
        size = float(scheduler.init_noise_sigma)
        if not low * 0.999 <= size <= high * 1.001:
            wanted = f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"
            raise Broken(f"an init_noise_sigma of {wanted}", f"{size:.5g}", count=count)


def _is_leading(subject: Subject, grid: list[float], count: int) -> bool:
    """Whether timesteps are multiples of ⌊T/N⌋ plus an offset. This is leading spacing, which may have a larger gap at the start."""
    if config_value(subject.scheduler, "timestep_spacing") != "leading":
        return False
    offset = float(config_value(subject.scheduler, "steps_offset") or 0)
    return (
        offset < max(2, subject.num_train_timesteps // count)
        and grid == [index * (subject.num_train_timesteps // count) + offset for index in range(count)][::-1]
    )


def _planned(subject: Subject, count: int) -> Any:
    try:
        return subject.planned(count)
    except Crash as crash:
        raise Broken("set_timesteps to accept any number of steps", str(crash), count=count) from crash


def _require_count_and_order(subject: Subject, scheduler: Any, timesteps: torch.Tensor, count: int) -> None:
    """Raise Broken unless a plan has its timesteps, which fall, or rise as those of inversions and of some flows, without repetition."""
    order = evaluations_per_step(scheduler)
    low, high = order * (count - 1) + 1, order * count
    planned = walking.length_of(subject, scheduler)
    if not low <= planned <= high:
        wanted = str(high) if low == high else f"{low} to {high}"
        raise Broken(f"{wanted} timesteps", f"{planned}{_MISNAMED if planned == count else ''}", count=count)
    distinct = timesteps if order == 1 else timesteps.unique_consecutive()
    distinct = distinct.flip(0) if float(timesteps[0]) < float(timesteps[-1]) else distinct
    # If the scheduler steps by sigmas, each timestep is rounded separately.
    wrong = (distinct[1:] >= distinct[:-1] + (1.0 if order > 1 or _is_rounded(scheduler, count) else 0.0)).nonzero()
    if len(wrong):
        place = int(wrong[0])
        seen = f"timestep {float(distinct[place]):g} is followed by {float(distinct[place + 1]):g}"
        raise Broken("timesteps that fall without repetition", seen, count=count)


def _is_rounded(scheduler: Any, count: int) -> bool:
    """Whether the scheduler steps by sigmas: then the timestep that the model gets is rounded, and may repeat."""
    values = getattr(scheduler, "sigmas", None)
    if values is None or len(values) <= count:
        return False
    sigmas = as_values(values)
    return bool((sigmas[1:count] < sigmas[: count - 1]).all())
