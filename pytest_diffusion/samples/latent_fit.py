"""Encoded reference images as the denoiser sees them, to find where near them it predicts best.

A denoiser is trained on the latents of one encoder, with one factor, one shift and one order of channels. Given
others it still runs, and predicts worse. All comparisons are paired: the same images, noise and prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from pytest_diffusion.adapters.latents import LatentCodec
from pytest_diffusion.adapters.levels import as_prediction, prediction_type_of
from pytest_diffusion.adapters.pipelines import is_text_conditioned
from pytest_diffusion.adapters.references import Reference
from pytest_diffusion.samples.generate import automatic_batch_size
from pytest_diffusion.samples.one_call import DenoiserCall
from pytest_diffusion.settings import Settings

IMAGES, SCOUTS = 32, 8


@dataclass(frozen=True)
class LatentFit:
    """Calls of the denoiser in the middle of a run, with the latents (N, C, h, w) and the noise that belong to each batch."""

    calls: list[DenoiserCall]
    latents: list[torch.Tensor]
    noise: list[torch.Tensor]
    scaling_factor: float
    scout: LatentFit | None = None
    """The first few images alone, to look through many changes of which the best is then measured on all."""

    def errors(self, *, factor: float = 1.0, offset: float = 0.0, order: list[int] | None = None) -> torch.Tensor:
        """Mean squared error of the prediction for each image, (N,), float64, when all latents are changed so.

        In the model's own units: at one noise level every type of prediction errs in proportion to the noise's.
        """
        values = []
        for call, latents, noise in zip(self.calls, self.latents, self.noise, strict=True):
            changed = (latents if order is None else latents[:, order]) * factor + offset
            noised = call.noised(changed, noise)
            scheduler = call.pipeline.scheduler
            wanted = as_prediction(changed, noised, call.level, prediction_type_of(scheduler), scheduler=scheduler)
            values.append((call.output(noised) - wanted).double().square().flatten(1).mean(1))
        return torch.cat(values)

    @cached_property
    def own_errors(self) -> torch.Tensor:
        """`errors` of the latents as they are encoded."""
        return self.errors()

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

    def fit(count: int, scout: LatentFit | None = None) -> LatentFit:
        calls, latents, noise = [], [], []
        for start in range(0, count, batch_size):
            encoded = codec.encode(images[start : min(start + batch_size, count)])
            prompts = texts[start : start + len(encoded)] if is_text_conditioned(pipeline) else None
            calls.append(DenoiserCall.catch(pipeline, prompts, settings, count=len(encoded)))
            latents.append(encoded)
            noise.append(torch.randn(encoded.shape, generator=torch.Generator().manual_seed(settings.seed + start)))
        return LatentFit(calls, latents, noise, codec.scaling_factor, scout)

    return fit(len(images), fit(min(SCOUTS, len(images))))
