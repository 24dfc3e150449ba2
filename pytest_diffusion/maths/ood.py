"""Out-of-distribution scores: Mahalanobis distance with a shrunk covariance, judged on both sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_diffusion.maths.tensors import ArrayLike, as_matrix, same_width


@dataclass(frozen=True)
class MahalanobisScorer:
    """Distances to a Gaussian fitted to reference latents, and the range that held-out references span.

    Fit and calibration use different references, so the false-alarm rate of `is_outlier` is the nominal one.
    """

    mean: torch.Tensor
    precision_factor: torch.Tensor
    centre: float

    @classmethod
    def fit(cls, reference: ArrayLike) -> MahalanobisScorer:
        """Fit to reference latents (M, D), M ≥ 4: three quarters give mean and covariance, the rest the typical distance."""
        matrix = as_matrix(reference, "reference", min_rows=4)
        count = len(matrix) * 3 // 4
        mean = matrix[:count].mean(0)
        covariance = ledoit_wolf(matrix[:count])
        factor = torch.linalg.inv(torch.linalg.cholesky(covariance))
        scorer = cls(mean, factor, 0.0)
        return cls(mean, factor, float(scorer.distances(matrix[count:]).log().mean()))

    def distances(self, latents: ArrayLike) -> torch.Tensor:
        """Mahalanobis distances (N,), float64, of latents (N, D)."""
        matrix = as_matrix(latents, "latents")
        same_width(matrix, self.mean[None])
        distances: torch.Tensor = ((matrix - self.mean) @ self.precision_factor.T).norm(dim=1)
        return distances

    def scores(self, latents: ArrayLike) -> torch.Tensor:
        """How atypical each latent is, (N,): |log distance − typical log distance|.

        Two-sided, because a flat image lies *closer* to the mean than any real one.
        """
        return (self.distances(latents).clamp(min=1e-300).log() - self.centre).abs()


def ledoit_wolf(matrix: torch.Tensor) -> torch.Tensor:
    """Covariance (D, D) of rows (N, D), shrunk towards a multiple of the identity by the Ledoit–Wolf weight.

    Source: Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
    """
    centred = matrix - matrix.mean(0)
    count, size = centred.shape
    sample = centred.T @ centred / count
    scale = sample.trace() / size
    target = scale * torch.eye(size, dtype=matrix.dtype)
    distance = (sample - target).square().sum() / size
    # E‖x xᵀ − S‖² / N, expanded so that no N×D×D array is formed.
    noise = ((centred.square().sum(1) ** 2).mean() - sample.square().sum()) / (count * size)
    weight = float((noise.clamp(min=0) / distance).clamp(max=1)) if distance > 0 else 1.0
    shrunk: torch.Tensor = weight * target + (1 - weight) * sample
    return shrunk
