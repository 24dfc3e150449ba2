"""Fréchet distance between Gaussians fitted to features, its standard error, and the statistics it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pytest_diffusion.maths.tensors import ArrayLike, as_matrix, require_finite, same_width


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,), unbiased covariance (D, D), both float64, and how many features they were taken from.

    `count` is None where a file does not say.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int | None = None

    @classmethod
    def from_features(cls, features: ArrayLike) -> FeatureStatistics:
        """Statistics of features (N, D), N ≥ 2, in float64. Raises ValueError for non-finite entries."""
        matrix = as_matrix(features, "features", min_rows=2)
        mean = matrix.mean(0)
        centred = matrix - mean
        return cls(mean, centred.T @ centred / (len(matrix) - 1), len(matrix))

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Statistics from an `.npz` with `mu` and `sigma` (pytorch-fid, clean-fid, ADM, EDM).

        Such files do not record resize, weights or count. Raises ValueError for other files and for pickled
        arrays, which are refused because they can run code.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                keys = set(file.files)
                if not {"mu", "sigma"} <= keys:
                    raise ValueError(f"{path} has the keys {sorted(keys)}; expected 'mu' and 'sigma'.")
                mean, covariance = torch.from_numpy(file["mu"]).double(), torch.from_numpy(file["sigma"]).double()
        except (OSError, ValueError, EOFError) as error:
            if isinstance(error, FileNotFoundError) or str(error).startswith(str(path)):
                raise
            raise ValueError(f"{path} cannot be read as an .npz of plain arrays: {error}") from None
        size = len(mean) if mean.ndim == 1 else -1
        if covariance.shape != (size, size):
            raise ValueError(f"{path}: mu has shape {tuple(mean.shape)} and sigma {tuple(covariance.shape)}; expected (D,) and (D, D).")
        require_finite(mean, f"{path}: mu")
        require_finite(covariance, f"{path}: sigma")
        return cls(mean, covariance)


def frechet_distance(features: ArrayLike | FeatureStatistics, reference: ArrayLike | FeatureStatistics) -> float:
    """Squared Fréchet distance between Gaussians fitted to features (N, D) and reference (M, D), in float64.

    Singular covariances (N ≤ D) are exact up to rounding. Source: arXiv:1706.08500; Dowson & Landau 1982.
    """
    left, right = _statistics(features), _statistics(reference)
    same_width(left.mean[None], right.mean[None])
    factor = _factor(right.covariance)
    cross = _significant(torch.linalg.eigvalsh(factor.T @ left.covariance @ factor)).sqrt().sum()
    shift = (left.mean - right.mean).square().sum()
    distance = shift + left.covariance.trace() + right.covariance.trace() - 2 * cross
    return max(float(distance), 0.0)


def frechet_standard_error(features: ArrayLike, reference: ArrayLike | FeatureStatistics) -> float:
    """Standard error of the Fréchet distance at these sample sizes, by its influence function.

    The gradient in the covariance is I − T with T the optimal transport map; every sample contributes
    2(μ−ν)·(x−μ) + (x−μ)ᵀ(I−T)(x−μ). A reference given as statistics counts as exact.
    Source: the delta method on Dowson & Landau 1982; the bias of order 1/N is not part of it.
    """
    left = as_matrix(features, "features", min_rows=2)
    right = _statistics(reference)
    variance = _influence_variance(left, _statistics(left), right)
    if not isinstance(reference, FeatureStatistics):
        matrix = as_matrix(reference, "reference", min_rows=2)
        variance += _influence_variance(matrix, right, _statistics(left))
    return math.sqrt(variance)


def _influence_variance(matrix: torch.Tensor, own: FeatureStatistics, other: FeatureStatistics) -> float:
    factor = _factor(other.covariance)
    values, vectors = torch.linalg.eigh(factor.T @ own.covariance @ factor)
    keep = values > len(values) * torch.finfo(values.dtype).eps * values.max().clamp(min=0)
    half = factor @ vectors[:, keep] * values[keep] ** -0.25
    centred = matrix - own.mean
    influence = 2 * centred @ (own.mean - other.mean) + centred.square().sum(1) - (centred @ half).square().sum(1)
    return float(influence.var()) / len(matrix)


def _statistics(source: ArrayLike | FeatureStatistics) -> FeatureStatistics:
    return source if isinstance(source, FeatureStatistics) else FeatureStatistics.from_features(source)


def _factor(covariance: torch.Tensor) -> torch.Tensor:
    """L (D, R) with L Lᵀ = covariance of rank R."""
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > len(values) * torch.finfo(values.dtype).eps * values.max().clamp(min=0)
    factor: torch.Tensor = vectors[:, keep] * values[keep].sqrt()
    return factor


def _significant(values: torch.Tensor) -> torch.Tensor:
    """Eigenvalues above rounding: the square root would turn 1e-16 of noise into 1e-8 of error, each."""
    if len(values) == 0:
        return values
    return values[values > len(values) * torch.finfo(values.dtype).eps * values.max().clamp(min=0)]
