"""The denoising loss of a pipeline on noised images, image by image and noise level by noise level, without drawing any sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.capabilities import has_vae, is_text_conditioned, uses_guidance
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.levels import as_prediction, clean_of, kind_of, level_of_timestep, prediction_type_of
from pytest_diffusion.models.one_call import DenoiserCall
from pytest_diffusion.models.schedulers import num_train_timesteps
from pytest_diffusion.verdicts.errors import NotApplicable

BANDS = 5
"""Noise levels at which each image is denoised."""
_NEAR = 0.05
"""Log-SNRs of two models that are nearer are the same level."""
_WIDEST = 8.0
"""Beyond this log-SNR, on either side, a prediction is nearly free of error or nearly without information."""


def band_timesteps(scheduler: Any, count: int = BANDS) -> list[float]:
    """Training timesteps in the middle of `count` bands of equal width in log-SNR, from the least noise to the most.

    The bands share the log-SNRs of the training schedule between −8 and 8. Raises NotApplicable for a scheduler whose
    timesteps alone do not determine its noise levels.
    """
    grid, snr = _levels(scheduler)
    inside = snr[(snr > -_WIDEST) & (snr < _WIDEST)]
    if len(inside) < count:
        raise NotApplicable(f"{type(scheduler).__name__} has {len(inside)} training timesteps with log-SNRs between -8 and 8.")
    low, high = float(inside.min()), float(inside.max())
    middles = [high - (high - low) * (band + 0.5) / count for band in range(count)]
    return [grid[int((snr - middle).abs().argmin())] for middle in middles]


def timesteps_at(scheduler: Any, log_snr: Sequence[float]) -> list[float]:
    """The training timesteps of a scheduler whose log-SNRs are nearest to the given ones, by whose timesteps another model is noised.

    Raises NotApplicable where a level is farther than a twentieth away: the two models were trained on other noise.
    """
    grid, snr = _levels(scheduler)
    found = [int((snr - wanted).abs().argmin()) for wanted in log_snr]
    for wanted, index in zip(log_snr, found, strict=True):
        if abs(float(snr[index]) - wanted) > _NEAR:
            raise NotApplicable(
                f"{type(scheduler).__name__} has no training timestep with a log-SNR of {wanted:.2f}: the two models have other noise "
                "schedules, and would see other noise."
            )
    return [grid[index] for index in found]


def denoising_losses(
    pipeline: Any,
    images: torch.Tensor,
    prompts: Sequence[str] | None,
    noise_seeds: Sequence[int],
    settings: Settings,
    *,
    timesteps: Sequence[float],
    prediction_type: str = "",
) -> torch.Tensor:
    """Mean squared error of the prediction for each image and timestep, float64 (N, T), in the units of `prediction_type`.

    `images` uint8 (N, 3, H, W) are encoded by the pipeline's own VAE, if it has one; the noise of each image comes from its own
    seed, so that two models see the same. The denoiser is asked once for each image and timestep, with the image's prompt and
    without guidance. `prediction_type` is the scheduler's own by default; with another one, predictions are converted to it.
    Raises NotApplicable where noise levels are not known.
    """
    own = prediction_type_of(pipeline.scheduler)
    wanted = prediction_type or own
    clean = LatentCodec.of(pipeline).encode(images) if has_vae(pipeline) else images.float() / 127.5 - 1
    noise = torch.stack([torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in noise_seeds])
    texts = list(prompts) if prompts is not None and is_text_conditioned(pipeline) else None
    plain = {"guidance_scale": 1.0} if uses_guidance(pipeline) else {}
    call = DenoiserCall.catch(pipeline, texts, settings, seeds=noise_seeds, step=0, **plain)
    found = []
    for timestep in timesteps:
        there = call.at(timestep)
        noised = there.noised(clean, noise)
        output = there.output(noised)
        if wanted != own:
            output = as_prediction(clean_of(output, noised, there.level, own), noised, there.level, wanted)
        error = output.double() - as_prediction(clean, noised, there.level, wanted).double()
        found.append(error.square().flatten(1).mean(1))
    return torch.stack(found, 1)


def _levels(scheduler: Any) -> tuple[list[float], torch.Tensor]:
    """The training timesteps of a scheduler, and their log-SNRs (T,), float64. Raises NotApplicable where these are not known."""
    kind = kind_of(scheduler)
    if kind == "edm":
        raise NotApplicable(f"{type(scheduler).__name__} conditions its model on its sigmas, not on training timesteps.")
    total = num_train_timesteps(scheduler)
    grid = [float(step) for step in (range(total) if kind != "flow" else range(1, total))]
    return grid, torch.tensor([_log_snr(scheduler, timestep) for timestep in grid], dtype=torch.float64)


def _log_snr(scheduler: Any, timestep: float) -> float:
    level = level_of_timestep(scheduler, timestep)
    alpha, sigma = float(level.alpha), float(level.sigma)
    if alpha <= 0 or sigma <= 0:
        return math.inf if sigma <= 0 else -math.inf
    return 2 * math.log(alpha / sigma)
