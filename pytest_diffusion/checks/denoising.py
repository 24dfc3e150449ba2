"""Checks of a pixel model's denoiser against closed forms, and of the forward process that it was trained on."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from pytest_diffusion.analytic.compare import Denoisers, compare_trajectories, epsilon_losses
from pytest_diffusion.checks import plots
from pytest_diffusion.checks.registry import check
from pytest_diffusion.maths.statistics import mean_estimate
from pytest_diffusion.models.levels import NoiseLevel, kind_of, level_of_timestep
from pytest_diffusion.models.schedulers import Scheduler, num_train_timesteps, with_timesteps
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement

_SHARES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.95)
"""Where along the training schedule the loss is measured."""


@check(
    "schedule",
    "the forward process has the schedule's marginals",
    figure="largest deviation of `add_noise` or `scale_noise` from αx₀ + σε",
    sees="a missing square root, a wrong σ",
    blind_to="inference: the plan and the steps",
)
def forward_marginals(scheduler: Scheduler) -> Measurement:
    """Largest deviation of `add_noise` (or `scale_noise`) from α·x₀ + σ·noise of the schedule, relative to the larger of α and σ.

    Source: arXiv:2006.11239, equation 4; arXiv:2206.00364, table 1; arXiv:2210.02747, equation 20.
    """
    name = type(scheduler).__name__
    try:
        fresh = with_timesteps(scheduler, min(20, num_train_timesteps(scheduler)))
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise NotApplicable(f"{name} does not plan 20 steps: {error}") from error
    method = "scale_noise" if kind_of(fresh) == "flow" else "add_noise"
    if not hasattr(fresh, method):
        raise NotApplicable(f"{name} has no {method}.")
    worst, place = 0.0, 0.0
    for timestep in torch.unique(torch.as_tensor(fresh.timesteps).cpu()).flip(0):
        laws = _laws(fresh, timestep)
        try:
            kept, added = (
                _noised(fresh, method, image, 1 - image, timestep) for image in (torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
            )
        except (NotImplementedError, IndexError) as error:
            raise NotApplicable(f"{name}.{method} does not take single timesteps: {error}") from error
        gaps = [
            max(float((kept - alpha).abs().max()), float((added - sigma).abs().max())) / max(alpha, sigma, 1e-12) for alpha, sigma in laws
        ]
        gap = min(gaps) if not any(map(math.isnan, gaps)) else math.nan
        if not gap <= worst:
            worst, place = gap, float(timestep)
    hint = f"It is largest at timestep {place:g}." if worst > 0 else ""
    return Measurement(worst, "largest deviation of the forward process", hint=hint)


@check(
    "metrics",
    "the denoiser is no worse than a linear filter",
    figure="ε-loss on held-out images minus a linear filter's, at the worst of six timesteps",
    sees="untrained or damaged weights, a wrong timestep",
    blind_to="anything beyond second moments; unconditional pixel models only",
    plot=plots.loss,
)
def denoising_loss(denoisers: Denoisers) -> Measurement:
    """The model's ε-loss on held-out images minus that of the Wiener filter fitted to the other images, at the worst of six timesteps.

    The linear filter is the best that second moments allow. A trained model has a smaller loss, up to an error of its
    own of about 0.001; an untrained, damaged or wrongly conditioned model has a larger one, and predicting zero has 1.
    Source: arXiv:2006.11239, equation 14, against the closed form of docs/oracle.md.
    """
    total = num_train_timesteps(denoisers.model.scheduler)
    timesteps = [int(share * total) for share in _SHARES]
    rows = []
    for timestep in timesteps:
        ours, theirs = (epsilon_losses(one, denoisers.images, timestep) for one in (denoisers.model, denoisers.closed_form))
        # Paired: both saw the same noise on the same images.
        rows.append((mean_estimate(ours - theirs), float(ours.mean()), float(theirs.mean())))
    values = [row[0].value for row in rows]
    worst = max(range(len(rows)), key=lambda index: values[index] if not math.isnan(values[index]) else math.inf)
    series = {"timesteps": timesteps, "model": [row[1] for row in rows], "closed_form": [row[2] for row in rows]}
    hint = f"It is largest at timestep {timesteps[worst]}, where the model has {rows[worst][1]:.3g} and the filter {rows[worst][2]:.3g}."
    return Measurement.with_error(
        *rows[worst][0], name="loss above a linear filter's", num_samples=len(denoisers.images), series=series, hint=hint
    )


@check(
    "metrics",
    "the denoiser follows a closed form",
    figure="R² with a linear filter along the trajectory",
    sees="how far a model is from linear",
    blind_to="no default limit; unconditional pixel models only",
    plot=plots.trajectory,
)
def trajectory_agreement(denoisers: Denoisers) -> Measurement:
    """R² between the model's clean predictions and the closed form's, over all evaluations of the model's own trajectory."""
    found = compare_trajectories(denoisers.model, denoisers.closed_form, num_inference_steps=20)
    worst = max(range(len(found.mse)), key=lambda index: found.mse[index])
    hint = f"They differ most at a log-SNR of {found.log_snr[worst]:.1f}, where the mean squared error is {found.mse[worst]:.3g}."
    series = {"log_snr": found.log_snr, "r2": found.r2, "mse": found.mse, "l2": found.l2}
    return Measurement(found.overall, "R² along the trajectory", num_samples=32, series=series, hint=hint)


def _noised(scheduler: Any, method: str, image: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Noised images of a fresh copy: some schedulers remember the first timestep that they were given."""
    call, at = getattr(copy.deepcopy(scheduler), method), timestep.reshape(1)
    noised: torch.Tensor = call(image, at, noise) if method == "scale_noise" else call(image, noise, at)
    return noised


def _laws(scheduler: Any, timestep: torch.Tensor) -> list[tuple[float, float]]:
    """All pairs of α and σ that are correct for a sample (not the model's input) at a timestep, once timesteps are set.

    There may be more than one where timesteps are rounded: two steps with different σ may share a timestep, and both
    the training schedule's level at the timestep and the step's own σ are correct.
    """
    kind = kind_of(scheduler)
    sigmas = getattr(scheduler, "sigmas", None)
    laws = []
    if sigmas is not None and len(sigmas) >= len(scheduler.timesteps):
        places = (torch.as_tensor(scheduler.timesteps).cpu() == timestep).nonzero().flatten().tolist()
        for sigma in (float(torch.as_tensor(sigmas)[place]) for place in places):
            level = NoiseLevel.of_ratio(sigma)
            laws.append({"flow": (1 - sigma, sigma), "vp": (float(level.alpha), float(level.sigma))}.get(kind, (1.0, sigma)))
    if kind == "vp":
        level = level_of_timestep(scheduler, timestep)
        laws.append((float(level.alpha), float(level.sigma)))
    if not laws:
        raise NotApplicable(f"the noise level of {type(scheduler).__name__} at a timestep is not known.")
    return laws
