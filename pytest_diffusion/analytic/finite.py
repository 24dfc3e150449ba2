"""Models of finite data sets: the ideal denoiser, which memorises the data, its smoothed form, and the nearest image."""

from __future__ import annotations

from typing import Any

import torch

from pytest_diffusion.analytic.base import AnalyticModel, Dataset, whole
from pytest_diffusion.analytic.registry import register_model
from pytest_diffusion.analytic.softmax import StreamingSoftmax
from pytest_diffusion.models.levels import NoiseLevel


class _Finite(AnalyticModel):
    """A model that stores its images, float32 (M, D), and processes `block_size` of them at a time."""

    images: torch.Tensor

    def __init__(self, *, block_size: int = 1024, **rest: Any) -> None:
        super().__init__(**rest)
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; expected at least 1.")
        self.block_size = block_size
        self.register_buffer("images", torch.zeros(0))

    def fit(self, dataset: Dataset) -> _Finite:
        images = whole(dataset)
        self.image_shape, self.images = tuple(images.shape[1:]), images.flatten(1).contiguous()
        return self

    def squared_distances(self, sample: torch.Tensor, images: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """‖x − α·x_i‖² of samples (N, D) and images (m, D), float64 (N, m)."""
        # In float64: at low noise the distances are divided by 1e-4, so small differences between them change the softmax.
        rows, others = sample.double(), level.alpha * images.double()
        squares = rows.square().sum(1)[:, None] + others.square().sum(1)
        return torch.addmm(squares, rows, others.T, alpha=-2).clamp(min=0)


@register_model("optimal")
class Optimal(_Finite):
    """The ideal denoiser of a finite data set: a softmax over all images, which memorises them.

    E[x₀|x] = Σ softmax(−‖x − αx_i‖²/2σ²) x_i. With `neighbours`, only that many nearest images are used (found by
    faiss if it is installed). `truncation_bound` gives the largest error that this can cause.
    Source: Karras et al. 2022 (arXiv:2206.00364), appendix B.3; De Bortoli 2022.
    """

    def __init__(self, *, neighbours: int | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        if neighbours is not None and neighbours < 1:
            raise ValueError(f"neighbours is {neighbours}; expected at least 1.")
        self.neighbours = neighbours
        self._index: Any = None

    def fit(self, dataset: Dataset) -> Optimal:
        """The model with all images of the data set in memory, float32, and a search index if `neighbours` is set."""
        super().fit(dataset)
        self._index = _faiss_index(self.images) if self.neighbours is not None else None
        return self

    def posterior_mean(self, sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        flat = sample.flatten(1)
        if float(level.sigma) == 0:
            return self.images[self.nearest(flat, level, 1)[1][:, 0]].to(sample.dtype).view_as(sample)
        if self.neighbours is not None and self.neighbours < len(self.images):
            distances, indices = self.nearest(flat, level, self.neighbours)
            weights = (-distances / (2 * level.sigma.square())).softmax(1)
            return torch.einsum("nk,nkd->nd", weights, self.images[indices].double()).to(sample.dtype).view_as(sample)
        running = StreamingSoftmax()
        for images in self.images.split(self.block_size):
            running.add(-self.squared_distances(flat, images, level) / (2 * level.sigma.square()), images.double())
        return running.mean().to(sample.dtype).view_as(sample)

    def nearest(self, sample: torch.Tensor, level: NoiseLevel, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared distances ‖x − αx_i‖², float64, and indices (N, count) of the nearest images, nearest first."""
        count = min(count, len(self.images))
        if float(level.alpha) == 0:
            found = torch.arange(count, device=self.images.device).expand(len(sample), -1)
        elif self._index is not None:
            # The image x_i nearest to x/α is also the one with α·x_i nearest to x.
            queries = (sample.double() / level.alpha).float().cpu().numpy()
            found = torch.from_numpy(self._index.search(queries, count)[1]).to(self.images.device)
        else:
            found = self._nearest_in_blocks(sample, level, count)
        gathered = level.alpha * self.images[found].double()
        exact = (sample.double()[:, None] - gathered).square().sum(2)
        order = exact.argsort(1)
        return exact.gather(1, order), found.gather(1, order)

    def truncation_bound(self, sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """Upper bound (N,), float64, of the distance between the predictions from `neighbours` images and from all images.

        The omitted images are no nearer than the last one used, so their share of the softmax is at most
        (M − k)·exp(−(d_k² − d_1²)/2σ²). The prediction changes by at most that share of the data's diameter.
        """
        if self.neighbours is None or self.neighbours >= len(self.images) or float(level.sigma) == 0:
            return torch.zeros(len(sample), dtype=torch.float64, device=sample.device)
        distances, _ = self.nearest(sample.flatten(1), level, self.neighbours)
        logits = -(distances - distances[:, :1]) / (2 * level.sigma.square())
        rest = (len(self.images) - self.neighbours) * logits[:, -1].exp()
        diameter = 2 * (self.images - self.images.mean(0)).double().norm(dim=1).max()
        bound: torch.Tensor = rest / (logits.exp().sum(1) + rest) * diameter
        return bound

    def _nearest_in_blocks(self, sample: torch.Tensor, level: NoiseLevel, count: int) -> torch.Tensor:
        best = torch.full((len(sample), count), torch.inf, dtype=torch.float64, device=sample.device)
        index = torch.zeros(len(sample), count, dtype=torch.int64, device=sample.device)
        for start in range(0, len(self.images), self.block_size):
            distances = self.squared_distances(sample, self.images[start : start + self.block_size], level)
            near, place = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
            both, ids = torch.cat([best, near], 1), torch.cat([index, place + start], 1)
            best, order = both.topk(count, dim=1, largest=False)
            index = ids.gather(1, order)
        return index


def _faiss_index(images: torch.Tensor) -> Any:
    """An exact faiss index of the images, or None if faiss is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatL2(images.shape[1])
    index.add(images.cpu().numpy())
    return index


@register_model("nearest_dataset")
class NearestDataset(Optimal):
    """The image of the data set nearest to the sample: the limit of `optimal` as the noise goes to zero."""

    def posterior_mean(self, sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return self.images[self.nearest(sample.flatten(1), level, 1)[1][:, 0]].to(sample.dtype).view_as(sample)


@register_model("scfdm")
class SmoothedClosedForm(_Finite):
    """Smoothed closed-form diffusion: `optimal` averaged over `num_noises` shifted samples, which gives barycentres of images.

    The shifts are Gaussian with standard deviation `smoothing` in units of the images. They are scaled by α like
    the images, and drawn once from `seed`. With `smoothing` 0 it is `optimal`. Source: arXiv:2310.12395, section 4.
    """

    shifts: torch.Tensor

    def __init__(self, *, smoothing: float = 0.2, num_noises: int = 8, seed: int = 0, **rest: Any) -> None:
        super().__init__(**rest)
        if smoothing < 0 or num_noises < 1:
            raise ValueError(f"smoothing is {smoothing} and num_noises {num_noises}; expected at least 0 and at least 1.")
        self.smoothing, self.num_noises, self.seed = smoothing, num_noises, seed
        self.register_buffer("shifts", torch.zeros(0))

    def fit(self, dataset: Dataset) -> SmoothedClosedForm:
        """The model with all images and the shifts."""
        super().fit(dataset)
        generator = torch.Generator().manual_seed(self.seed)
        self.shifts = self.smoothing * torch.randn(self.num_noises, self.images.shape[1], generator=generator)
        return self

    def posterior_mean(self, sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        flat = sample.flatten(1)
        shifted = (flat[:, None] + (level.alpha.to(flat) * self.shifts.to(flat.dtype))[None]).flatten(0, 1)
        noise = level.sigma.square().clamp(min=1e-24)
        running = StreamingSoftmax()
        for images in self.images.split(self.block_size):
            running.add(-self.squared_distances(shifted, images, level) / (2 * noise), images.double())
        return running.mean().view(len(flat), self.num_noises, -1).mean(1).to(sample.dtype).view_as(sample)
