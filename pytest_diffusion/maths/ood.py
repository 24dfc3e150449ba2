"""Out-of-distribution scores: Mahalanobis and nearest-neighbour distances, two-sided, with calibrated p-values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from pytest_diffusion.maths.tensors import ArrayLike, as_matrix, same_width


class Distances(Protocol):
    """A scorer that returns the distances (N,), float64, of latents (N, D) from a reference."""

    def distances(self, latents: ArrayLike) -> torch.Tensor: ...


@dataclass(frozen=True)
class Mahalanobis:
    """Mahalanobis distances to the reference's mean, with a covariance that is shrunk towards a multiple of the identity."""

    mean: torch.Tensor
    precision_factor: torch.Tensor

    @classmethod
    def fit(cls, reference: ArrayLike) -> Mahalanobis:
        """Mean and Ledoit-Wolf covariance (scikit-learn) of latents (M, D), M >= 2.

        Source: Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
        """
        from sklearn.covariance import ledoit_wolf

        matrix = as_matrix(reference, "reference", min_rows=2)
        covariance = torch.from_numpy(ledoit_wolf(matrix.numpy())[0])
        return cls(matrix.mean(0), torch.linalg.inv(torch.linalg.cholesky(covariance)))

    def distances(self, latents: ArrayLike) -> torch.Tensor:
        """Mahalanobis distances (N,), float64, of latents (N, D)."""
        matrix = as_matrix(latents, "latents")
        same_width(matrix, self.mean[None])
        distances: torch.Tensor = ((matrix - self.mean) @ self.precision_factor.T).norm(dim=1)
        return distances


@dataclass(frozen=True)
class NearestNeighbours:
    """Euclidean distances to the k-th nearest reference. Source: Sun et al. 2022 (arXiv:2204.06507)."""

    reference: torch.Tensor
    k: int = 5

    @classmethod
    def fit(cls, reference: ArrayLike, *, k: int = 5) -> NearestNeighbours:
        """The scorer for reference latents (M, D), M >= k."""
        return cls(as_matrix(reference, "reference", min_rows=k), k)

    def distances(self, latents: ArrayLike) -> torch.Tensor:
        """Distances (N,), float64, of latents (N, D)."""
        matrix = as_matrix(latents, "latents")
        same_width(matrix, self.reference)
        distances: torch.Tensor = torch.cdist(matrix, self.reference).kthvalue(self.k, dim=1).values
        return distances


@dataclass(frozen=True)
class OutlierDetector:
    """Both distances, compared with their typical values, and p-values that are valid for any distribution of the latents.

    A score is |log distance − mean log distance| divided by its standard deviation. It is two-sided, because a flat
    image lies *closer* to the mean than any real one. The larger of the two scores is used.
    """

    scorers: tuple[Distances, ...]
    centres: torch.Tensor
    spreads: torch.Tensor
    calibration: torch.Tensor
    """Scores of reference latents that are used for nothing else, ascending."""

    @classmethod
    def fit(cls, reference: ArrayLike) -> OutlierDetector:
        """Fit to reference latents (M, D), M >= 10.

        Three fifths fit the distances, one fifth gives their typical values, and one fifth is for calibration.
        """
        matrix = as_matrix(reference, "reference", min_rows=10)
        fifth = len(matrix) // 5
        own, typical, calibration = matrix[: -2 * fifth], matrix[-2 * fifth : -fifth], matrix[-fifth:]
        scorers: tuple[Distances, ...] = (Mahalanobis.fit(own), NearestNeighbours.fit(own))
        logs = _log_distances(scorers, typical)
        detector = cls(scorers, logs.mean(1), logs.std(1).clamp(min=1e-12), torch.zeros(0))
        return cls(scorers, detector.centres, detector.spreads, detector.scores(calibration).sort().values)

    def scores(self, latents: ArrayLike) -> torch.Tensor:
        """How atypical each latent is, (N,), float64."""
        deviations = (_log_distances(self.scorers, latents) - self.centres[:, None]).abs() / self.spreads[:, None]
        return deviations.amax(0)

    def p_values(self, latents: ArrayLike) -> torch.Tensor:
        """Conformal p-values (N,): for latents from the reference's distribution, P(p <= α) <= α.

        Source: Vovk et al. 2005; Bates et al. 2023 (arXiv:2104.08279).
        """
        count = len(self.calibration)
        above = count - torch.searchsorted(self.calibration, self.scores(latents), side="left")
        return (1 + above).double() / (1 + count)


def _log_distances(scorers: tuple[Distances, ...], latents: ArrayLike) -> torch.Tensor:
    """Log distances (scorers, N)."""
    return torch.stack([scorer.distances(latents).clamp(min=1e-300).log() for scorer in scorers])
