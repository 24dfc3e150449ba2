"""Noise schedules: log-SNR in one definition for all families, its slope, and the textbook schedules."""

from __future__ import annotations

import math

import torch

from pytest_diffusion.maths.tensors import ArrayLike


def log_snr_of_alphas_cumprod(alphas_cumprod: ArrayLike) -> torch.Tensor:
    """log(ᾱ/(1−ᾱ)) in nats, float64 (T,); −inf at ᾱ = 0. Source: arXiv:2107.00630, section 3.1."""
    alphas = torch.as_tensor(alphas_cumprod).to(torch.float64)
    return alphas.log() - torch.log1p(-alphas)


def log_snr_of_sigmas(sigmas: ArrayLike) -> torch.Tensor:
    """−2·log σ in nats, float64 (T,), of a variance-exploding or EDM schedule. Source: arXiv:2206.00364."""
    return -2 * torch.as_tensor(sigmas).to(torch.float64).log()


def log_snr_of_flow_sigmas(sigmas: ArrayLike) -> torch.Tensor:
    """2·log((1−σ)/σ) in nats, float64 (T,), of a rectified flow; −inf at σ = 1. Source: arXiv:2403.03206."""
    values = torch.as_tensor(sigmas).to(torch.float64)
    return 2 * (torch.log1p(-values) - values.log())


def midway_fall(log_snr: torch.Tensor) -> float:
    """Steepest fall of log-SNR (T,) over any tenth of the schedule between T/4 and 3T/4, in nats per unit of t/T.

    `log_snr` runs from clean to noisy. A cosine schedule falls by 7.8 there, that of
    Stable Diffusion by 8.0 and the linear one of DDPM by 14.2.
    """
    count = len(log_snr)
    span = max(1, count // 10)
    middle = log_snr[count // 4 : max(count // 4 + span + 1, 3 * count // 4)]
    return float(((middle[:-span] - middle[span:]) * count / span).max())


def textbook_log_snr(num_train_timesteps: int = 1000) -> dict[str, torch.Tensor]:
    """Log-SNR curves of the standard schedules with which a model's schedule is compared, each float64 (T,).

    Linear (arXiv:2006.11239), scaled linear (Stable Diffusion), cosine (arXiv:2102.09672).
    """
    count = num_train_timesteps
    linear = torch.linspace(1e-4, 0.02, count, dtype=torch.float64)
    scaled = torch.linspace(0.00085**0.5, 0.012**0.5, count, dtype=torch.float64) ** 2
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    bars = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
    cosine = (1 - bars[1:] / bars[:-1]).clamp(max=0.999)
    return {
        name: log_snr_of_alphas_cumprod((1 - betas).cumprod(0))
        for name, betas in (("linear", linear), ("scaled linear", scaled), ("cosine", cosine))
    }
