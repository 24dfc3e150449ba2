"""Encoded reference images as the denoiser sees them, to find where near them it predicts best.

A denoiser is trained on the latents of one encoder, with one factor, one shift and one order of channels. Given
others it still runs, and predicts worse. All comparisons are paired: the same images, noise and prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.references import Reference
from pytest_diffusion.models.capabilities import is_text_conditioned, uses_guidance
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.levels import as_prediction, prediction_type_of
from pytest_diffusion.models.one_call import DenoiserCall
from pytest_diffusion.samples.generate import automatic_batch_size
from pytest_diffusion.samples.seeds import seed_of, seeds_of

IMAGES, SCOUTS = 32, 8


@dataclass(frozen=True)
class LatentFit:
    """Calls of the denoiser in the middle of a run, with the latents (N, C, h, w) and the noise that belong to each batch."""

    calls: list[DenoiserCall]
    latents: list[torch.Tensor]
    noise: list[torch.Tensor]
    scaling_factor: float
    is_distilled: bool = False
    """Whether it draws from text without guidance: then it was taught to predict what guidance would, not the mean."""
    first_few: LatentFit | None = None
    """The first few images alone, for a search through many changes; the best is then measured on all images."""

    def errors(self, *, factor: float = 1.0, offset: float = 0.0, order: list[int] | None = None) -> torch.Tensor:
        """Mean squared error of the prediction for each image, (N,), float64, when all latents are changed so.

        In the model's own units: at one noise level every type of prediction errs in proportion to the noise's.
        """
        return torch.cat([residual.square().flatten(1).mean(1) for residual, _, _ in self._predictions(factor, offset, order)])

    def agreement(self, factor: float) -> torch.Tensor:
        """Of latents times a factor: (prediction · latents, |prediction|²) for each image, (N, 2), float64, means of channels apart.

        The mean of all images that a noisy one may come from is as long as its projection on the true one: the two figures
        are equal on average at the scale that the denoiser was trained on, the first is larger beyond it and smaller before.
        """
        values = []
        for residual, slope, changed in self._predictions(factor, 0.0, None):
            clean, wanted = (one - one.mean((2, 3), keepdim=True) for one in (changed + residual / slope, changed))
            values.append(torch.stack([(clean * wanted).flatten(1).sum(1), clean.square().flatten(1).sum(1)], 1))
        return torch.cat(values)

    def _predictions(
        self, factor: float, offset: float, order: list[int] | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """By batch: what the output lacks of the right one, how that grows with an error of the clean image, and the clean latents."""
        for call, latents, noise in zip(self.calls, self.latents, self.noise, strict=True):
            changed = (latents if order is None else latents[:, order]) * factor + offset
            noised = call.noised(changed, noise)
            right, next_to_it = (self._output_for(clean, noised, call) for clean in (changed, changed + 1))
            yield (call.output(noised) - right).double(), (next_to_it - right).double(), changed.double()

    def _output_for(self, clean: torch.Tensor, noised: torch.Tensor, call: DenoiserCall) -> torch.Tensor:
        scheduler = call.pipeline.scheduler
        return as_prediction(clean, noised, call.level, prediction_type_of(scheduler), scheduler=scheduler)

    @cached_property
    def own_errors(self) -> torch.Tensor:
        """`errors` of the latents as they are encoded."""
        return self.errors()

    @property
    def scout(self) -> LatentFit:
        """The first few images alone; all of them where no few were set apart."""
        return self.first_few or self

    @property
    def channels(self) -> int:
        """How many channels the latents have."""
        return self.latents[0].shape[1]


def fit_latents(pipeline: Any, codec: LatentCodec, reference: Reference, settings: Settings) -> LatentFit:
    """Catch the denoiser's call for 32 reference images, with their prompts where they have some and empty ones otherwise.

    Raises NotApplicable for a reference without images, and for models whose noise level is not known.
    """
    images = reference.require_images()[:IMAGES]
    texts = reference.prompts or [""] * len(images)
    batch_size = automatic_batch_size(settings, pipeline)
    guided = uses_guidance(pipeline) and (settings.guidance_scale is None or settings.guidance_scale > 1)
    is_distilled = is_text_conditioned(pipeline) and not guided

    def fit(count: int, first_few: LatentFit | None = None) -> LatentFit:
        calls, latents, noise = [], [], []
        for start in range(0, count, batch_size):
            encoded = codec.encode(images[start : min(start + batch_size, count)])
            prompts = texts[start : start + len(encoded)] if is_text_conditioned(pipeline) else None
            calls.append(DenoiserCall.catch(pipeline, prompts, settings, seeds=seeds_of(settings, len(encoded))))
            latents.append(encoded)
            noise.append(torch.randn(encoded.shape, generator=torch.Generator().manual_seed(seed_of(settings, start))))
        return LatentFit(calls, latents, noise, codec.scaling_factor, is_distilled, first_few)

    return fit(len(images), fit(min(SCOUTS, len(images))))
