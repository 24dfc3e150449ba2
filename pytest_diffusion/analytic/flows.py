"""Exact solutions for Gaussian data and for a point mass, in float64: flows, marginals and single steps. Derivations: docs/oracle.md.

Samples are α·x₀ + σ·noise at a `NoiseLevel`. This covers variance-preserving schedules, σ-space (α = 1) and flow matching (α = 1 − σ).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_diffusion.models.levels import NoiseLevel


@dataclass(frozen=True)
class GaussianLaw:
    """The data distribution N(mean, covariance): `mean` (D,), `eigenvalues` (R,) and `eigenvectors` (D, R), all float64.

    Directions beyond the R given ones have no variance. R = 0 is a point mass.
    """

    mean: torch.Tensor
    eigenvalues: torch.Tensor
    eigenvectors: torch.Tensor

    @classmethod
    def of(cls, mean: torch.Tensor, covariance: torch.Tensor) -> GaussianLaw:
        """The distribution with this mean (D,) and covariance (D, D)."""
        values, vectors = torch.linalg.eigh(covariance.double())
        return cls(mean.double(), values.clamp(min=0), vectors)

    @classmethod
    def point_mass(cls, mean: torch.Tensor) -> GaussianLaw:
        """The distribution whose samples are all equal to `mean` (D,)."""
        empty = torch.zeros(0, dtype=torch.float64)
        return cls(mean.double(), empty, torch.zeros(len(mean), 0, dtype=torch.float64))


def marginal(law: GaussianLaw, level: NoiseLevel) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (D,) and covariance (D, D) of samples at a level: αμ and α²Σ + σ²."""
    alpha, sigma = level
    covariance = alpha.square() * (law.eigenvectors * law.eigenvalues) @ law.eigenvectors.T
    return alpha * law.mean, covariance + sigma.square() * torch.eye(len(law.mean), dtype=torch.float64)


def posterior_mean(law: GaussianLaw, sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """E[x₀ | sample] (N, D) for samples (N, D) at a level with σ > 0."""
    alpha, sigma = level
    gain = alpha * law.eigenvalues / (alpha.square() * law.eigenvalues + sigma.square())
    centred = sample.double() - alpha * law.mean
    return law.mean + (centred @ law.eigenvectors * gain) @ law.eigenvectors.T


def probability_flow(law: GaussianLaw, sample: torch.Tensor, start: NoiseLevel, end: NoiseLevel) -> torch.Tensor:
    """Solution (N, D) at level `end` of the probability-flow ODE through `sample` (N, D) at level `start`, σ_start > 0.

    In every direction of variance λ, the distance from the mean divided by the marginal's standard deviation
    is constant: x_t = α_t μ + √((α_t²λ + σ_t²)/(α_s²λ + σ_s²))·(x_s − α_s μ). Source: docs/oracle.md, section 2.
    """
    centred = sample.double() - start.alpha * law.mean
    stretch = _deviation(law.eigenvalues, end) / _deviation(law.eigenvalues, start)
    rest = end.sigma / start.sigma
    inside = centred @ law.eigenvectors
    return end.alpha * law.mean + rest * centred + (inside * (stretch - rest)) @ law.eigenvectors.T


def ddim_step(
    law: GaussianLaw, sample: torch.Tensor, start: NoiseLevel, end: NoiseLevel, *, eta: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (N, D) and standard deviation (scalar) of one DDIM step with the ideal denoiser, variance-preserving levels.

    x_t = α_t x̂₀ + √(σ_t² − c²)·ε̂ + c·noise with c = η·(σ_t/σ_s)·√(1 − α_s²/α_t²). Source: arXiv:2010.02502, equation 12.
    """
    clean = posterior_mean(law, sample, start)
    epsilon = (sample.double() - start.alpha * clean) / start.sigma
    deviation = eta * end.sigma / start.sigma * (1 - (start.alpha / end.alpha).square()).clamp(min=0).sqrt()
    return end.alpha * clean + (end.sigma.square() - deviation.square()).clamp(min=0).sqrt() * epsilon, deviation


def ddpm_step(law: GaussianLaw, sample: torch.Tensor, start: NoiseLevel, end: NoiseLevel) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (N, D) and standard deviation (scalar) of one DDPM step with the ideal denoiser and the variance `fixed_small`.

    The posterior q(x_t | x_s, x₀ = x̂₀) of variance-preserving levels. Source: arXiv:2006.11239, equations 6 and 7.
    """
    clean = posterior_mean(law, sample, start)
    kept = start.alpha / end.alpha
    added = 1 - kept.square()
    mean = end.alpha * added / start.sigma.square() * clean + kept * end.sigma.square() / start.sigma.square() * sample.double()
    return mean, (end.sigma.square() / start.sigma.square() * added).clamp(min=0).sqrt()


def irreducible_loss(law: GaussianLaw, level: NoiseLevel) -> torch.Tensor:
    """Mean squared error per dimension (scalar) of the ideal noise prediction: no ε-model trained on this distribution has less.

    α²/σ²·mean_i(λ_iσ²/(α²λ_i + σ²)), from the posterior's variance in each direction. Source: docs/oracle.md, section 5.
    """
    alpha, sigma = level
    left = law.eigenvalues * sigma.square() / (alpha.square() * law.eigenvalues + sigma.square())
    return (alpha / sigma).square() * left.sum() / len(law.mean)


def _deviation(variance: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    return (level.alpha.square() * variance + level.sigma.square()).sqrt()
