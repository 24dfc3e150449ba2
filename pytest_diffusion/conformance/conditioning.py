"""Laws of what the model is told: the timestep of the sample's noise level, and the sample at the scale of its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.loops import sample_of
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.levels import level_of_timestep
from pytest_diffusion.models.schedulers import as_values, config_value, evaluations_per_step, has_own_sigma_range
from pytest_diffusion.verdicts.drawing import Series
from pytest_diffusion.verdicts.errors import NotApplicable


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
        if subject.has_readings:
            raise NotApplicable(f"{subject.name} has noise levels that are {subject.reading_source}, not those of its timesteps.")
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
        walking.walk(subject, scheduler, torch.ones(1, 1, 2, 2), predict, last=last, replace=torch.zeros_like)
        for index, (seen, sigma) in enumerate(zip(shares, as_values(scheduler.sigmas).tolist(), strict=False)):
            wanted = float((sigma**2 + data**2) ** -0.5)
            if not (abs(seen - wanted) <= 1e-3 * wanted or seen == 1):
                told = f"the sample of step {index} multiplied by {seen:.5g}"
                raise Broken(f"the sample of σ = {sigma:.5g} multiplied by {wanted:.5g}, or unchanged", told, count=count)


@law(
    "the model is told the nearest timestep",
    source="Karras et al. 2022, arXiv:2206.00364, appendix C.3.4",
    counts=(5, 20),
    rests_on=("runs", "sigmas_fall", "timesteps_match_sigmas"),
)
def timesteps_are_nearest(subject: Subject, counts: Sequence[int]) -> Series:
    """A whole timestep must be the nearest one to the noise level of its sample: rounded, not cut off.

    The largest distance is reported; one of more than a half fails.
    """
    alphas = getattr(subject.scheduler, "alphas_cumprod", None)
    has_table = alphas is not None and subject.kind in ("vp", "sigma") and not has_own_sigma_range(subject.scheduler)
    if not has_table or subject.is_inverse or subject.has_readings:
        raise NotApplicable(f"{subject.name} has no table of timesteps, or goes from clean to noisy.")
    products = as_values(alphas).double()
    ratios = ((1 - products) / products).sqrt().log()
    largest = 0.0
    for count in subject.counts(*counts):
        scheduler = subject.planned(count)
        if getattr(scheduler, "sigmas", None) is None or len(scheduler.sigmas) < len(scheduler.timesteps):
            raise NotApplicable(f"{subject.name} uses timesteps only, no sigmas.")
        found = loops.run(subject, count, lambda sample, level: torch.zeros_like(sample), sample_of((1, 1, 2, 2)), scheduler=scheduler)
        for index, step in enumerate(found.steps[:: evaluations_per_step(scheduler)]):
            ratio = float(step.level.sigma / step.level.alpha) if float(step.level.alpha) > 0 else float("inf")
            log_ratio = torch.tensor(ratio, dtype=torch.float64).log()
            if not float(ratios[0]) <= float(log_ratio) <= float(ratios[-1]):
                continue  # beyond the table
            above = int(torch.searchsorted(ratios, log_ratio).clamp(1, len(ratios) - 1))
            exact = above - 1 + float((log_ratio - ratios[above - 1]) / (ratios[above] - ratios[above - 1]))
            off = abs(step.timestep - exact)
            largest = max(largest, off)
            # Tables are float32.
            if off > 0.5 + 0.02 and step.timestep == int(step.timestep):
                seen = f"step {index} gives the model timestep {step.timestep:g}, and its sample has the noise of {exact:.3f}"
                raise Broken("the nearest whole timestep", seen, count=count)
    return {"largest_distance": largest}


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
