"""Small controlled runs of the pipeline: the same seed again, another batch size, another guidance, another prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.load import call_pipeline, image_size, is_text_conditioned, takes_step_callback, uses_guidance
from pytest_diffusion.models.memory import BatchSize
from pytest_diffusion.samples.generate import generate_images, to_uint8
from pytest_diffusion.verdicts.errors import NotApplicable

COUNT = 4


@dataclass(frozen=True)
class Trials:
    """Runs of four samples with one thing changed; the plain run is shared by all comparisons."""

    pipeline: Any
    prompts: Sequence[str] | None
    settings: Settings

    def run(self, *, seeds: Sequence[int] | None = None, batch_size: int = COUNT, **changes: Any) -> torch.Tensor:
        """Images uint8 (N, 3, H, W) of the given seeds (default: four)."""
        chosen = list(seeds if seeds is not None else self.seeds)
        prompts = self._prompts(0, len(chosen))
        images = generate_images(self.pipeline, prompts, chosen, self.settings, batch=BatchSize(batch_size), **changes)
        return torch.from_numpy(to_uint8(images)[0])

    @property
    def seeds(self) -> list[int]:
        return [self.settings.seed + index for index in range(COUNT)]

    @cached_property
    def plain(self) -> torch.Tensor:
        """Four samples as the settings ask for them."""
        return self.run()

    def first_step(self, guidance_scale: float) -> torch.Tensor:
        """Latents (N, C, h, w), float64, after one inference step at a guidance scale.

        Raises NotApplicable for a pipeline without classifier-free guidance or without a step callback.
        """
        name = type(self.pipeline).__name__
        if not uses_guidance(self.pipeline):
            raise NotApplicable(f"{name} takes no guidance_scale, or is distilled and does not weigh two predictions by it.")
        if not takes_step_callback(self.pipeline):
            raise NotApplicable(f"{name} has no callback_on_step_end, so its first step cannot be seen.")
        kept: list[torch.Tensor] = []

        def keep(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            if step == 0:
                kept.append(values["latents"].detach().cpu().double())
                pipeline._interrupt = True
            return {}

        def first_steps(size: int) -> torch.Tensor:
            kept.clear()
            self._call(size, guidance_scale=guidance_scale, callback_on_step_end=keep, output_type="latent")
            return torch.cat(kept)

        return BatchSize(COUNT).run(first_steps)

    def latents(self) -> torch.Tensor:
        """Final latents (N, C, h, w), float32, of the plain run's seeds, unpacked where the pipeline packs them.

        Raises NotApplicable for a pipeline that hands out no latents.
        """
        found = torch.from_numpy(np.concatenate(BatchSize(COUNT).run(lambda size: self._call(size, output_type="latent"))))
        if found.ndim == 3:
            height, width = image_size(self.pipeline, self.settings)
            found = self.pipeline._unpack_latents(found, height, width, self.pipeline.vae_scale_factor)
        config = self.pipeline.vae.config
        channels = config.get("latent_channels") or config.get("z_dim")
        if found.ndim != 4 or (channels is not None and found.shape[1] != channels):
            raise NotApplicable(f"{type(self.pipeline).__name__} hands out no latents (it returned {tuple(found.shape)}).")
        return found

    def _call(self, size: int, **changes: Any) -> list[NDArray[np.floating[Any]]]:
        """What the pipeline gives for the plain run's seeds, in batches of `size`."""
        return [
            call_pipeline(
                self.pipeline,
                prompts=self._prompts(start, min(size, COUNT - start)),
                seeds=self.seeds[start : start + size],
                settings=self.settings,
                **changes,
            )
            for start in range(0, COUNT, size)
        ]

    def _prompts(self, start: int, count: int) -> list[str] | None:
        if self.prompts is None or not is_text_conditioned(self.pipeline):
            return None
        return [self.prompts[(start + index) % len(self.prompts)] for index in range(count)]
