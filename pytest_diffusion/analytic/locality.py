"""Locality from data statistics: each pixel has its own softmax over the data, on the pixels that the Wiener filter uses."""

from __future__ import annotations

from typing import Any

import torch

from pytest_diffusion.analytic.base import Dataset
from pytest_diffusion.analytic.finite import _Finite
from pytest_diffusion.analytic.gaussian import Wiener, _gain
from pytest_diffusion.analytic.registry import register_model
from pytest_diffusion.analytic.softmax import StreamingSoftmax
from pytest_diffusion.models.levels import NoiseLevel


@register_model("pca_locality")
class PcaLocality(_Finite):
    """A closed form in which each pixel uses only the pixels that the Wiener filter of this noise level uses for it.

    Row q of the filter's matrix gives the mask of pixel q: entries of at least `mask_threshold` times the row's
    largest, in absolute value. The prediction of q is the mean of x_i[q], weighted by
    softmax(−Σ_p mask[q, p]·(x − αx_i)_p²/2σ²τ) with τ the `temperature`. With `mask_threshold` 0 every mask is full
    and the model is `optimal`. Source: arXiv:2509.09672, with the softmax over the whole data set and not over
    each batch, so that the result does not depend on `block_size`.
    """

    def __init__(self, *, mask_threshold: float = 0.02, temperature: float = 1.0, block_size: int = 64, **rest: Any) -> None:
        super().__init__(block_size=block_size, **rest)
        if not 0 <= mask_threshold <= 1 or temperature <= 0:
            raise ValueError(f"mask_threshold is {mask_threshold} and temperature {temperature}; expected 0 to 1 and above 0.")
        self.mask_threshold, self.temperature = mask_threshold, temperature
        self.filter = Wiener(scheduler=self.scheduler)

    def fit(self, dataset: Dataset) -> PcaLocality:
        """The model with all images and their Wiener filter."""
        super().fit(dataset)
        self.filter.fit(self.images.view(-1, *self.image_shape))
        return self

    def masks(self, level: NoiseLevel) -> torch.Tensor:
        """Mask (D, D), float32 of zeros and ones: row q marks the pixels that pixel q uses."""
        if self.mask_threshold == 0:
            return torch.ones_like(self.filter.eigenvectors, dtype=torch.float32)
        vectors, gain = self.filter.eigenvectors.float(), _gain(self.filter.eigenvalues, level).float()
        rows = ((vectors * gain) @ vectors.T).abs()
        mask = (rows >= self.mask_threshold * rows.amax(1, keepdim=True)).float()
        # The mask of a pixel always includes the pixel itself, even if its value never varies.
        return mask.fill_diagonal_(1.0)

    def posterior_mean(self, sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        flat, masks = sample.flatten(1), self.masks(level).T.contiguous()
        scale = (-0.5 / (level.sigma.square().clamp(min=1e-24) * self.temperature)).to(torch.float32)
        running = StreamingSoftmax()
        for images in self.images.split(self.block_size):
            # Squared differences, computed directly: float32 is enough, because nothing cancels.
            squares = (flat.float()[:, None] - level.alpha.float() * images[None]).square_()
            logits = (squares.flatten(0, 1) @ masks).view_as(squares).mul_(scale)
            running.add(logits, images)
        return running.mean().to(sample.dtype).view_as(sample)
