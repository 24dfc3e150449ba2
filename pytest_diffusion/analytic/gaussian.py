"""Models of Gaussian data and Gaussian mixtures: the Wiener filter, and a weighted sum of one filter for each component."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pytest_diffusion.analytic.base import AnalyticModel, Dataset, batches, whole
from pytest_diffusion.analytic.registry import register_model
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.models.levels import NoiseLevel
from pytest_diffusion.verdicts.errors import ModelError

_LARGEST = 16_384
"""Largest number of dimensions for which a covariance is formed: 2 GB in float64."""


@register_model("wiener")
class Wiener(AnalyticModel):
    """The ideal denoiser of Gaussian data with the mean and covariance of a data set: linear at every noise level.

    E[x₀|x] = μ + αΣ(α²Σ + σ²)⁻¹(x − αμ). `eigenvalues` (D,) ascending, `eigenvectors` (D, D) in columns, `mean`
    (D,), all float64. Source: Wiener 1949; as a diffusion model Wang & Vastola, arXiv:2311.10892.
    """

    mean: torch.Tensor
    eigenvalues: torch.Tensor
    eigenvectors: torch.Tensor

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        for name in ("mean", "eigenvalues", "eigenvectors"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

    def fit(self, dataset: Dataset) -> Wiener:
        """The model with mean and unbiased covariance of images (N, C, H, W), computed batch by batch in float64.

        Raises ValueError for fewer than two images and for more than 16,384 dimensions.
        """
        statistics = FeatureStatistics()
        shape: tuple[int, ...] = ()
        for batch in batches(dataset):
            shape = tuple(batch.shape[1:])
            if (size := math.prod(shape)) > _LARGEST:
                raise ValueError(f"images of {shape} have {size} dimensions; a covariance is formed for at most {_LARGEST}: resize them.")
            statistics.update(batch.flatten(1))
        return self.set_law(statistics.mean, statistics.covariance, shape)

    def set_law(self, mean: torch.Tensor, covariance: torch.Tensor, image_shape: tuple[int, ...]) -> Wiener:
        """The model for N(mean, covariance): (D,) and (D, D) with D = C·H·W. Raises ValueError for a negative eigenvalue."""
        values, vectors = torch.linalg.eigh(covariance.double())
        if float(values[0]) < -1e-8 * max(float(values[-1]), 1e-300):
            raise ValueError(f"the covariance has an eigenvalue of {float(values[0]):.3g}; it must be positive semi-definite.")
        self.mean, self.eigenvalues, self.eigenvectors = mean.double(), values.clamp(min=0), vectors
        self.image_shape = tuple(image_shape)
        return self

    @property
    def covariance(self) -> torch.Tensor:
        """Σ (D, D), float64."""
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T

    def posterior_mean(self, sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        vectors, mean, gain = (tensor.to(sample.dtype) for tensor in (self.eigenvectors, self.mean, _gain(self.eigenvalues, level)))
        centred = sample.flatten(1) - level.alpha.to(sample) * mean
        return (mean + (centred @ vectors * gain) @ vectors.T).view_as(sample)

    def save(self, path: str | Path) -> None:
        """Write mean, eigenvalues and eigenvectors as safetensors; the file appears only once it is complete."""
        self._require_fit()
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        tensors = {name: buffer.contiguous() for name, buffer in self.named_buffers()}
        save_file(tensors, part, metadata={"model": "wiener", "image_shape": json.dumps(self.image_shape)})
        part.replace(path)

    def load(self, path: str | Path) -> Wiener:
        """The model with values that `save` wrote. Raises ModelError if the file is missing, damaged or of another kind."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
        if metadata.get("model") != "wiener" or set(tensors) != {"mean", "eigenvalues", "eigenvectors"}:
            raise ModelError(
                f"{path} is not a Wiener model file: it contains {sorted(tensors)} with metadata {metadata}. Write one with Wiener.save."
            )
        self.mean, self.eigenvalues, self.eigenvectors = tensors["mean"], tensors["eigenvalues"], tensors["eigenvectors"]
        self.image_shape = tuple(json.loads(metadata["image_shape"]))
        return self


@register_model("gaussian_mixture")
class GaussianMixture(AnalyticModel):
    """The ideal denoiser of a mixture of K Gaussians, each with a full covariance, or with `rank` directions and a floor.

    The sum of the components' Wiener filters, weighted by each component's posterior probability. `weights` (K,),
    `means` (K, D), `eigenvalues` (K, R) and `eigenvectors` (K, D, R) of the leading directions, `floor` (K,) the
    variance of all others; all float64. Source: Bayes' rule; low rank as in probabilistic PCA, Tipping & Bishop 1999.
    """

    weights: torch.Tensor
    means: torch.Tensor
    eigenvalues: torch.Tensor
    eigenvectors: torch.Tensor
    floor: torch.Tensor

    def __init__(self, *, components: int = 10, rank: int | None = None, seed: int = 0, **rest: Any) -> None:
        super().__init__(**rest)
        self.components, self.rank, self.seed = components, rank, seed
        for name in ("weights", "means", "eigenvalues", "eigenvectors", "floor"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

    def fit(self, dataset: Dataset) -> GaussianMixture:
        """The model with a mixture fitted by expectation maximisation (scikit-learn). Raises ValueError for too few images."""
        from sklearn.mixture import GaussianMixture as Fitted

        images = whole(dataset)
        if len(images) < self.components:
            raise ValueError(f"{len(images)} images cannot be fitted by {self.components} components.")
        fitted = Fitted(self.components, random_state=self.seed, reg_covar=1e-4).fit(images.flatten(1).double().numpy())
        covariances = torch.from_numpy(fitted.covariances_)
        return self.set_law(torch.from_numpy(fitted.weights_), torch.from_numpy(fitted.means_), covariances, tuple(images.shape[1:]))

    def set_law(
        self, weights: torch.Tensor, means: torch.Tensor, covariances: torch.Tensor, image_shape: tuple[int, ...]
    ) -> GaussianMixture:
        """The model for weights (K,), means (K, D) and covariances (K, D, D), reduced to `rank` directions if it is set.

        Raises ValueError if a weight is negative or the weights do not sum to 1.
        """
        weights = weights.double()
        if float(weights.min()) < 0 or abs(float(weights.sum()) - 1) > 1e-6:
            raise ValueError(f"the weights sum to {float(weights.sum()):.6g}; they must be non-negative and sum to 1.")
        values, vectors = torch.linalg.eigh(covariances.double())
        rank = values.shape[1] if self.rank is None else min(self.rank, values.shape[1])
        rest = values[:, : values.shape[1] - rank].clamp(min=0)
        self.floor = rest.mean(1) if rest.shape[1] else torch.zeros(len(values), dtype=torch.float64)
        self.eigenvalues, self.eigenvectors = values[:, -rank:].clamp(min=0), vectors[:, :, -rank:].contiguous()
        self.weights, self.means, self.image_shape = weights, means.double(), tuple(image_shape)
        return self

    def posterior_mean(self, sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        flat = sample.flatten(1).double()
        logits, estimates = [], []
        alpha, sigma = level
        for index in range(len(self.weights)):
            values, vectors, floor = self.eigenvalues[index], self.eigenvectors[index], self.floor[index]
            centred = flat - alpha * self.means[index]
            inside = centred @ vectors
            outside = centred.square().sum(1) - inside.square().sum(1)
            spread, rest = (alpha.square() * value + sigma.square() for value in (values, floor))
            others = flat.shape[1] - len(values)
            # Clamped, because a direction without variance has a spread of 0 at σ = 0.
            quadratic = (inside.square() / spread.clamp(min=1e-300)).sum(1) + (
                outside.clamp(min=0) / rest.clamp(min=1e-300) if others else 0
            )
            volume = spread.clamp(min=1e-300).log().sum() + (others * rest.clamp(min=1e-300).log() if others else 0)
            logits.append(self.weights[index].log() - (quadratic + volume) / 2)
            gain, gain_rest = _gain(values, level), _gain(floor, level) if others else torch.zeros((), dtype=torch.float64)
            estimates.append(self.means[index] + gain_rest * centred + (inside * (gain - gain_rest)) @ vectors.T)
        shares = torch.stack(logits, 1).softmax(1)
        return torch.einsum("nk,nkd->nd", shares, torch.stack(estimates, 1)).to(sample.dtype).view_as(sample)


def _gain(variance: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """αλ/(α²λ + σ²), the gain of the Wiener filter in a direction of variance λ; 0 if there is neither variance nor noise."""
    total = level.alpha.square() * variance + level.sigma.square()
    return torch.where(total > 0, level.alpha * variance / total.clamp(min=1e-300), torch.zeros_like(total))
