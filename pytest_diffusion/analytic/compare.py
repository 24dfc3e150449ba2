"""Comparison of two denoisers: their clean predictions along one trajectory, and their loss at each noise level."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pytest_diffusion.analytic.base import AnalyticModel
from pytest_diffusion.analytic.registry import create_model
from pytest_diffusion.maths.statistics import mean_error
from pytest_diffusion.models.capabilities import denoiser, has_vae, is_text_conditioned
from pytest_diffusion.models.levels import NoiseLevel, kind_of, level_of_timestep
from pytest_diffusion.models.schedulers import has_own_sigma_range
from pytest_diffusion.verdicts.errors import NotApplicable


@dataclass(frozen=True)
class Denoisers:
    """A model, a closed-form model fitted to one half of the images, and the other half, float (M, C, H, W) in [−1, 1]."""

    model: AnalyticModel
    closed_form: AnalyticModel
    images: torch.Tensor


def denoisers_of(pipeline: Any, images: torch.Tensor) -> Denoisers:
    """The denoiser of an unconditional pixel-space pipeline, and a Wiener filter of one half of uint8 images (M, 3, H, W).

    Raises NotApplicable for other pipelines, and if that half has fewer images than the filter has dimensions.
    """
    name = type(pipeline).__name__
    if has_vae(pipeline) or is_text_conditioned(pipeline):
        raise NotApplicable(f"needs an unconditional pixel-space model; {name} is not one.")
    part: Any = denoiser(pipeline)
    try:
        if isinstance(part, AnalyticModel):
            model = copy.copy(part)
            model.scheduler = pipeline.scheduler
        elif _is_unconditional(part):
            model = create_model("baseline_unet", unet=part, scheduler=pipeline.scheduler)
        else:
            raise NotApplicable(f"{name} has no UNet whose only inputs are sample and timestep.")
    except ValueError as error:
        raise NotApplicable(str(error)) from error
    known = kind_of(model.scheduler) in ("vp", "sigma") and not has_own_sigma_range(model.scheduler)
    if not known or getattr(model.scheduler, "alphas_cumprod", None) is None:
        raise NotApplicable(f"{type(model.scheduler).__name__} has no training timesteps at which a loss could be measured.")
    channels, *sides = model.image_shape
    if list(images.shape[-2:]) != sides:
        raise NotApplicable(f"the reference is {images.shape[-1]}x{images.shape[-2]} and the model draws {sides[1]}x{sides[0]}.")
    pixels = images[:, :channels].float() / 127.5 - 1
    seen, held_out = pixels[::2], pixels[1::2]
    if len(seen) < (needed := seen[0].numel()):
        raise NotApplicable(
            f"a linear filter of {needed} dimensions needs at least {needed} images; half of the reference has {len(seen)}."
        )
    return Denoisers(model, create_model("wiener", seen, scheduler=pipeline.scheduler).to(model.device), held_out)


def _is_unconditional(part: Any) -> bool:
    """Whether a denoiser is a pixel-space UNet without text or class conditioning."""
    config = getattr(part, "config", {})
    steered = config.get("num_class_embeds") or config.get("class_embed_type") or config.get("cross_attention_dim")
    return "in_channels" in config and "sample_size" in config and not steered


class TrajectoryComparison(NamedTuple):
    """Per evaluation: log-SNR in nats, R², mean squared error and mean L2 distance of the clean predictions; `overall`: R² over all.

    At high noise the predictions are close to their mean, so R² there means little. `overall` weights each evaluation by its spread.
    """

    log_snr: list[float]
    r2: list[float]
    mse: list[float]
    l2: list[float]
    overall: float


class Losses(NamedTuple):
    """Mean squared error per dimension of the predicted noise at each timestep, and its standard error over images."""

    values: list[float]
    errors: list[float]


def compare_trajectories(
    model: AnalyticModel,
    other: AnalyticModel,
    *,
    num_samples: int = 32,
    num_inference_steps: int | None = None,
    seed: int = 0,
    scheduler: Any = None,
) -> TrajectoryComparison:
    """Agreement of the clean predictions of `other` with those of `model`, at the states of the model's own sampling run.

    Both are clamped to [−1, 1]. R² = 1 − Σ‖x̂₀ − ŷ₀‖²/Σ‖x̂₀ − mean‖² over samples and dimensions. It is 1 if they
    agree, and 0 if `other` is no better than the mean of the model's predictions. Raises ValueError for different image shapes.
    """
    if model.image_shape != other.image_shape:
        raise ValueError(f"the models draw images of {model.image_shape} and {other.image_shape}; expected the same.")
    found: list[tuple[float, float, float, float]] = []
    squares, spreads = [], []

    def observe(model_input: torch.Tensor, level: NoiseLevel, estimate: torch.Tensor) -> None:
        # At pure noise, the error of a network's x̂₀ is its small error in ε times σ/α. Schedulers clip x̂₀ to the range of images.
        one, two = (clean.double().clamp(-1, 1) for clean in (estimate, other.posterior_mean(model_input, level)))
        gap = (one - two).flatten(1)
        spread = float((one - one.mean(0)).square().sum())
        squares.append(float(gap.square().sum()))
        spreads.append(spread)
        ratio = float((level.alpha / level.sigma).clamp(min=1e-300, max=1e300).log())
        share = squares[-1] / spread if spread > 0 else float(squares[-1] > 0)
        found.append((2 * ratio, 1 - share, float(gap.square().mean()), float(gap.norm(dim=1).mean())))

    generator = torch.Generator().manual_seed(seed)
    model.sample(
        num_samples,
        batch_size=num_samples,
        generator=generator,
        num_inference_steps=num_inference_steps,
        scheduler=scheduler,
        observer=observe,
    )
    columns = [list(column) for column in zip(*found, strict=True)]
    total = sum(spreads)
    overall = float(sum(squares) == 0) if total == 0 else 1 - sum(squares) / total
    return TrajectoryComparison(columns[0], columns[1], columns[2], columns[3], overall)


@torch.no_grad()
def epsilon_loss(model: AnalyticModel, images: torch.Tensor, timesteps: Sequence[int], *, seed: int = 0, batch_size: int = 64) -> Losses:
    """The DDPM training loss ‖ε − ε̂‖² per dimension at each timestep, over images (M, C, H, W) in [−1, 1].

    The same `seed` gives every model the same noise, so that the choice of noise does not affect the comparison.
    Source: arXiv:2006.11239, equation 14.
    """
    values, errors = [], []
    for timestep in timesteps:
        per_image = epsilon_losses(model, images, timestep, seed=seed, batch_size=batch_size)
        values.append(float(per_image.mean()))
        errors.append(mean_error(per_image))
    return Losses(values, errors)


@torch.no_grad()
def epsilon_losses(model: AnalyticModel, images: torch.Tensor, timestep: int, *, seed: int = 0, batch_size: int = 64) -> torch.Tensor:
    """`epsilon_loss` of each image at one timestep: float64 (M,)."""
    generator = torch.Generator().manual_seed(seed)
    level = level_of_timestep(model.scheduler, timestep)
    alpha, sigma = float(level.alpha), float(level.sigma)
    losses = []
    for batch in images.float().split(batch_size):
        noise = torch.randn(batch.shape, generator=generator)
        predicted = model.predict((alpha * batch + sigma * noise).to(model.device), timestep, "epsilon").cpu()
        losses.append((predicted - noise).double().square().flatten(1).mean(1))
    return torch.cat(losses)
