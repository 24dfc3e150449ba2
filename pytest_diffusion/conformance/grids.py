"""Laws of the inference grid: timesteps and sigmas are well formed, cover the schedule and agree with each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from pytest_diffusion.conformance import loops
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.loops import sample_of
from pytest_diffusion.conformance.subject import Crash, Subject
from pytest_diffusion.models.levels import level_of_timestep
from pytest_diffusion.models.schedulers import (
    as_values,
    config_value,
    evaluations_per_step,
    has_own_sigma_range,
    is_flow,
    revisits_timesteps,
)
from pytest_diffusion.verdicts.errors import NotApplicable

_SHAPES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "sigma_schedule")


@law(
    "timesteps are counted, ordered and in range",
    source="diffusers' scheduler interface",
    counts=(1, 2, 3, 4, 5, 7, 10, 13, 16, 20, 50, 100, 333, 999, 1000),
)
def timesteps_well_formed(subject: Subject, counts: Sequence[int]) -> None:
    """`set_timesteps(n)` must give n timesteps (order·n if a step evaluates the model more than once).

    They must lie inside the training schedule, and decrease without repetition.
    """
    loops.require_levels(subject)
    for count in subject.counts(*counts):
        scheduler = _planned(subject, count)
        timesteps = as_values(scheduler.timesteps).to("cpu", torch.float64)
        if not bool(torch.isfinite(timesteps).all()):
            raise Broken("finite timesteps", loops.unfit(timesteps), count=count)
        order, revisits = evaluations_per_step(scheduler), revisits_timesteps(scheduler)
        if not revisits:
            low, high = order * (count - 1) + 1, order * count
            if not low <= len(timesteps) <= high:
                wanted = str(high) if low == high else f"{low} to {high}"
                raise Broken(f"{wanted} timesteps", f"{len(timesteps)}", count=count)
            _require_order(timesteps, order, count, rising=subject.is_inverse, rounded=_is_rounded(scheduler, count))
        if not has_own_sigma_range(scheduler) or is_flow(scheduler):
            # If the table starts with a clean entry, timesteps are counted from 1.
            alphas = getattr(scheduler, "alphas_cumprod", None)
            table = 0 if alphas is None else len(alphas)
            top = subject.num_train_timesteps if is_flow(scheduler) else max(subject.num_train_timesteps, table) - 1
            outside = timesteps[(timesteps < 0) | (timesteps > top)]
            if len(outside):
                raise Broken(f"timesteps from 0 to {top}", f"timestep {float(outside[0]):g}", count=count)


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
        _require_training_grid(subject)
        return
    shaped = [name for name in _SHAPES if config_value(subject.scheduler, name)]
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
    rests_on=("runs", "timesteps_well_formed"),
)
def sigmas_fall(subject: Subject, counts: Sequence[int]) -> None:
    """Each step must remove noise, so the sigmas must decrease strictly from one step to the next."""
    loops.require_levels(subject)
    if getattr(subject.scheduler, "sigmas", None) is None and getattr(_planned(subject, subject.some_count), "sigmas", None) is None:
        raise NotApplicable(f"{subject.name} has no sigmas.")
    for count in subject.counts(*counts):
        scheduler = _planned(subject, count)
        sigmas = as_values(scheduler.sigmas).to("cpu", torch.float64)
        if len(sigmas) == subject.num_train_timesteps != len(scheduler.timesteps):
            raise NotApplicable(f"{subject.name} has the sigmas of training, not of the inference plan.")
        if not bool(torch.isfinite(sigmas).all()):
            raise Broken("finite sigmas", loops.unfit(sigmas), count=count)
        if subject.is_inverse:
            sigmas = sigmas.flip(0)
        # A step of a higher order may use the same sigma for several evaluations.
        distinct = sigmas if evaluations_per_step(scheduler) == 1 else _without_repeats(sigmas)
        rises = (distinct[1:] >= distinct[:-1]).nonzero()
        if len(rises):
            place = int(rises[0])
            pair = f"sigma {float(distinct[place]):.6g} is followed by {float(distinct[place + 1]):.6g}"
            seen = f"{pair} (number {place} and {place + 1} of {len(distinct)})"
            raise Broken("sigmas that fall at every step", seen, count=count)
        if evaluations_per_step(scheduler) > 1 and len(distinct) < count:
            raise Broken(f"at least {count} different sigmas", f"{len(distinct)}", count=count)


@law(
    "timesteps and sigmas name the same noise level",
    source="Karras et al. 2022, arXiv:2206.00364, appendix C.3.4",
    counts=(2, 5, 10, 30),
    rests_on=("runs", "sigmas_fall"),
)
def timesteps_match_sigmas(subject: Subject, counts: Sequence[int]) -> None:
    """The model must get the timestep whose training noise level the sample has, up to rounding to a whole timestep.

    A network is conditioned on the timestep: with a wrong one it removes the wrong amount of noise.
    """
    for count in subject.counts(*counts):
        scheduler = subject.planned(count)
        if subject.kind == "edm" and hasattr(scheduler, "precondition_noise"):
            _require_own_conditioning(scheduler, count)
            continue
        if getattr(scheduler, "sigmas", None) is None:
            raise NotApplicable(f"{subject.name} uses timesteps only, no sigmas.")
        if subject.is_inverse:
            raise NotApplicable(f"{subject.name} is an inverse scheduler: its timesteps do not give the noise level of its samples.")
        found = loops.run(subject, count, lambda sample, level: torch.zeros_like(sample), sample_of((1, 1, 2, 2)), scheduler=scheduler)
        for index, step in enumerate(found.steps):
            require_named_level(subject, scheduler, step, index, count)


@law(
    "the model is given the sample at the scale of its training",
    source="Karras et al. 2022, arXiv:2206.00364, table 1 (c_in)",
    counts=(5,),
)
def model_input(subject: Subject, counts: Sequence[int]) -> None:
    """`scale_model_input` must divide x₀ + σ·noise by √(σ² + σ_data²), where σ_data is 1 except for EDM, or not change it."""
    subject.require_kind()
    trained = subject.kind == "edm" or (subject.kind == "sigma" and getattr(subject.scheduler, "alphas_cumprod", None) is not None)
    if not trained or not hasattr(subject.scheduler, "scale_model_input") or subject.is_inverse:
        raise NotApplicable(f"{subject.name} does not scale its samples, or the scale of its network is unknown.")
    data = float(config_value(subject.scheduler, "sigma_data") or 1.0) if subject.kind == "edm" else 1.0
    for count in subject.counts(*counts):
        scheduler = subject.planned(count)
        shares: list[float] = []

        def predict(sample: torch.Tensor, scaled: torch.Tensor, timestep: Any, shares: list[float] = shares) -> torch.Tensor:
            shares.append(float(scaled.sum() / sample.sum()))
            return torch.zeros_like(sample)

        # Inside a step of a higher order, the solver chooses the noise levels.
        last = None if evaluations_per_step(scheduler) == 1 else 1
        loops.walk(subject, scheduler, torch.ones(1, 1, 2, 2), predict, last=last, replace=torch.zeros_like)
        for index, (seen, sigma) in enumerate(zip(shares, as_values(scheduler.sigmas).tolist(), strict=False)):
            wanted = float((sigma**2 + data**2) ** -0.5)
            if not (abs(seen - wanted) <= 1e-3 * wanted or seen == 1):
                told = f"the sample of step {index} multiplied by {seen:.5g}"
                raise Broken(f"the sample of σ = {sigma:.5g} multiplied by {wanted:.5g}, or unchanged", told, count=count)


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
        sigma = float(loops.level_before(scheduler, as_values(scheduler.timesteps)[0]).sigma)
        low, high = (sigma, (sigma**2 + 1) ** 0.5) if subject.kind in ("sigma", "edm") else (1.0, 1.0)
        size = float(scheduler.init_noise_sigma)
        if not low * 0.999 <= size <= high * 1.001:
            wanted = f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"
            raise Broken(f"an init_noise_sigma of {wanted}", f"{size:.5g}", count=count)


def require_named_level(subject: Subject, scheduler: Any, step: loops.Step, index: int, count: int) -> None:
    """Raise Broken if the timestep that the model gets does not have the noise level of the sample."""
    named = [loops.level_of_state(scheduler, level_of_timestep(scheduler, step.timestep + shift)) for shift in _rounding(subject)]
    ratios = [float(level.sigma / level.alpha) if float(level.alpha) > 0 else float("inf") for level in named]
    own = float(step.level.sigma / step.level.alpha) if float(step.level.alpha) > 0 else float("inf")
    if not min(ratios) * 0.998 - 1e-4 <= own <= max(ratios) * 1.002 + 1e-4:
        told = f"step {index} gives the model timestep {step.timestep:.6g} (σ/α = {ratios[len(ratios) // 2]:.4g})"
        seen = f"{told}, and the sample has σ/α = {own:.4g}"
        raise Broken("the sample's noise level to be that of the timestep", seen, count=count)


def _require_own_conditioning(scheduler: Any, count: int) -> None:
    """Raise Broken unless an EDM model gets `precondition_noise(σ)` as its timestep."""
    for index, (timestep, sigma) in enumerate(zip(scheduler.timesteps, scheduler.sigmas, strict=False)):
        wanted = float(scheduler.precondition_noise(torch.as_tensor(sigma)))
        if abs(float(timestep) - wanted) > 1e-3 * max(1.0, abs(wanted)):
            seen = f"step {index} gives the model timestep {float(timestep):.6g}"
            raise Broken(f"precondition_noise of its sigma {float(sigma):.4g}, which is {wanted:.6g}", seen, count=count)


def _rounding(subject: Subject) -> list[float]:
    """Offsets to the timesteps that may have been rounded to this one."""
    if subject.kind == "edm" or has_own_sigma_range(subject.scheduler):
        return [0.0]
    last = subject.num_train_timesteps - 1
    return [-1.0, 0.0, 1.0] if last > 1 else [0.0]


def _is_leading(subject: Subject, grid: list[float], count: int) -> bool:
    """Whether timesteps are multiples of ⌊T/N⌋ plus an offset. This is leading spacing, which may have a larger gap at the start."""
    if config_value(subject.scheduler, "timestep_spacing") != "leading":
        return False
    offset = float(config_value(subject.scheduler, "steps_offset") or 0)
    return (
        offset < max(2, subject.num_train_timesteps // count)
        and grid == [index * (subject.num_train_timesteps // count) + offset for index in range(count)][::-1]
    )


def _require_training_grid(subject: Subject) -> None:
    """Raise Broken if a flow with as many inference steps as training steps does not use the training schedule."""
    total = subject.num_train_timesteps
    trained = getattr(subject.fresh(), "sigmas", None)
    others = (*_SHAPES, "use_dynamic_shifting", "shift_terminal", "invert_sigmas")
    shaped = [name for name in others if config_value(subject.scheduler, name)]
    if shaped or trained is None or len(trained) not in (total, total + 1):
        raise NotApplicable(f"{subject.name} uses {shaped[0] if shaped else 'shares of noise'} for its plan, not its training schedule.")
    if subject.counts(total):
        own = as_values(trained)[:total].double()
        planned = _without_repeats(as_values(subject.planned(total).sigmas).double())[:total]
        gap = (planned - own).abs() if len(planned) == total else torch.full((1,), torch.inf)
        place = int(gap.argmax())
        if float(gap[place]) > 1e-3:
            seen = f"sigma {float(own[place]):.5g} of training differs by {float(gap[place]):.3g} in the plan (number {place})"
            raise Broken(f"the {total} sigmas of training in a plan of {total} steps", seen, count=total)


def _planned(subject: Subject, count: int) -> Any:
    try:
        return subject.planned(count)
    except Crash as crash:
        raise Broken("set_timesteps to accept any number of steps", str(crash), count=count) from crash


def _require_order(timesteps: torch.Tensor, order: int, count: int, *, rising: bool, rounded: bool) -> None:
    distinct = timesteps if order == 1 else timesteps.unique_consecutive()
    distinct = distinct.flip(0) if rising else distinct
    # If the scheduler steps by sigmas, each timestep is rounded separately.
    wrong = (distinct[1:] >= distinct[:-1] + (1.0 if order > 1 or rounded else 0.0)).nonzero()
    if len(wrong):
        place = int(wrong[0])
        seen = f"timestep {float(distinct[place]):g} is followed by {float(distinct[place + 1]):g}"
        raise Broken("timesteps that fall without repetition", seen, count=count)


def _without_repeats(sigmas: torch.Tensor) -> torch.Tensor:
    """Sigmas without those that equal their predecessor up to rounding."""
    return torch.cat([sigmas[:1], sigmas[1:][(sigmas[1:] - sigmas[:-1]).abs() > 1e-9 * sigmas[:-1].abs()]])


def _is_rounded(scheduler: Any, count: int) -> bool:
    """Whether the scheduler steps by sigmas: then the timestep that the model gets is rounded, and may repeat."""
    values = getattr(scheduler, "sigmas", None)
    if values is None or len(values) <= count:
        return False
    sigmas = as_values(values)
    return bool((sigmas[1:count] < sigmas[: count - 1]).all())
