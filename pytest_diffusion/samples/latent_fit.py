"""The denoiser's error on encoded reference images, as they are and with another scale, shift or channel order.

A denoiser is trained on the latents of one encoder, with one factor, one shift and one order of channels. With other
latents it still runs, but its error is larger. All comparisons are paired: the same images, noise and prompts.
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
from pytest_diffusion.samples.generate import shared_batch_size
from pytest_diffusion.samples.seeds import seed_of, seeds_of

IMAGES, SCOUTS = 32, 8


@dataclass(frozen=True)
class LatentFit:
    """Denoiser calls from the middle of a run, one per batch, with the batch's latents (N, C, h, w) and noise."""

    calls: list[DenoiserCall]
    latents: list[torch.Tensor]
    noise: list[torch.Tensor]
    scaling_factor: float
    is_distilled: bool = False
    """Whether it is a text model that runs without guidance. It then predicts a guided result, not the posterior mean."""
    first_few: LatentFit | None = None
    """The fit of the first few images, for a search over many changes; the best change is then measured on all images."""

    def errors(self, *, factor: float = 1.0, offset: float = 0.0, order: list[int] | None = None) -> torch.Tensor:
        """Mean squared error of the prediction for each image, float64 (N,), on latents·factor + offset with channels in `order`.

        The error has the units of the model's output. At one noise level the errors of all prediction types are proportional.
        """
        return torch.cat([residual.square().flatten(1).mean(1) for residual, _, _ in self._predictions(factor, offset, order)])

    def agreement(self, factor: float) -> torch.Tensor:
        """Inner product of clean prediction and latents, and squared norm of the prediction, for each image, float64 (N, 2).

        Latents are multiplied by `factor`; each channel's mean is subtracted from both. The best clean prediction is the
        posterior mean, for which the two values are equal on average. This holds at the scale that the denoiser was
        trained on. At a larger scale the first value is larger, at a smaller scale it is smaller.
        """
        values = []
        for residual, slope, changed in self._predictions(factor, 0.0, None):
            clean, wanted = (one - one.mean((2, 3), keepdim=True) for one in (changed + residual / slope, changed))
            values.append(torch.stack([(clean * wanted).flatten(1).sum(1), clean.square().flatten(1).sum(1)], 1))
        return torch.cat(values)

    def _predictions(
        self, factor: float, offset: float, order: list[int] | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """By batch: the output's error, the change of the correct output per unit of the clean latents, and the clean latents."""
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
        """`errors` of the unchanged latents."""
        return self.errors()

    @property
    def scout(self) -> LatentFit:
        """The fit of the first few images, or of all images where there is no such fit."""
        return self.first_few or self

    @property
    def channels(self) -> int:
        """Number of channels of the latents."""
        return self.latents[0].shape[1]


def fit_latents(pipeline: Any, codec: LatentCodec, reference: Reference, settings: Settings) -> LatentFit:
    """The fit of the first 32 reference images, with their prompts, or empty prompts where they have none.

    Raises NotApplicable for a reference without images, and for models whose noise level is not known.
    """
    images = reference.require_images()[: settings.times_effort(IMAGES)]
    texts = reference.prompts or [""] * len(images)
    guided = uses_guidance(pipeline) and (settings.guidance_scale is None or settings.guidance_scale > 1)
    is_distilled = is_text_conditioned(pipeline) and not guided

    def fit(count: int, first_few: LatentFit | None = None) -> LatentFit:
        parts = shared_batch_size(settings, pipeline).parts(count, part)
        calls, latents, noise = map(list, zip(*parts, strict=True))
        return LatentFit(calls, latents, noise, codec.scaling_factor, is_distilled, first_few)

    def part(rows: slice) -> tuple[DenoiserCall, torch.Tensor, torch.Tensor]:
        encoded = codec.encode(images[rows])
        prompts = texts[rows] if is_text_conditioned(pipeline) else None
        call = DenoiserCall.catch(pipeline, prompts, settings, seeds=seeds_of(settings, len(encoded)))
        noise = torch.randn(encoded.shape, generator=torch.Generator().manual_seed(seed_of(settings, rows.start)))
        # All later calls are as large as this one: if memory runs out, it does so here, where the batch can be halved.
        call.output(call.noised(encoded, noise))
        return call, encoded, noise

    return fit(len(images), fit(min(SCOUTS, len(images))))
