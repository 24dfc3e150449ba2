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
from pytest_diffusion.data.batches import batch_size_of
from pytest_diffusion.models.call import call_pipeline
from pytest_diffusion.models.capabilities import (
    denoiser,
    device_of,
    dtype_of,
    image_size,
    is_text_conditioned,
    takes_step_callback,
    uses_guidance,
)
from pytest_diffusion.samples.generate import generate_images, to_uint8
from pytest_diffusion.samples.seeds import seeds_of
from pytest_diffusion.verdicts.errors import NotApplicable

COUNT = 4


@dataclass(frozen=True)
class Trials:
    """Runs of four samples with one setting changed; the plain run is shared by all comparisons."""

    pipeline: Any
    prompts: Sequence[str] | None
    settings: Settings

    def run(self, *, seeds: Sequence[int] | None = None, batch_size: int = COUNT, **changes: Any) -> torch.Tensor:
        """Images uint8 (N, 3, H, W) of the given seeds (default: four)."""
        chosen = list(seeds if seeds is not None else self.seeds)
        prompts = self._prompts(0, len(chosen))
        images = generate_images(self.pipeline, prompts, chosen, self.settings, batch=batch_size_of(self.pipeline, batch_size), **changes)
        return torch.from_numpy(to_uint8(images)[0])

    @property
    def seeds(self) -> list[int]:
        """Seeds of the plain run."""
        return seeds_of(self.settings, COUNT)

    @cached_property
    def plain(self) -> torch.Tensor:
        """Four samples with unchanged settings."""
        return self.run()

    @cached_property
    def again(self) -> torch.Tensor:
        """The plain run once more, with the same seeds and batches."""
        return self.run()

    @cached_property
    def one_by_one(self) -> torch.Tensor:
        """The samples of the plain run, each made in a batch of one."""
        return torch.cat([self._of(self._prompts(index, 1)).run(seeds=[seed]) for index, seed in enumerate(self.seeds)])

    @cached_property
    def of_one_prompt(self) -> tuple[list[int], torch.Tensor]:
        """Four other seeds, and images of the first prompt at these seeds, uint8 (4, 3, H, W)."""
        seeds = [self.seeds[0] + 1000 + index for index in range(COUNT)]
        return seeds, self._of(None if self.prompts is None else [self.prompts[0]]).run(seeds=seeds)

    @cached_property
    def of_two_prompts(self) -> dict[str, torch.Tensor]:
        """Images of two different prompts at the plain run's seeds, by prompt.

        Raises NotApplicable for a model without prompts, and where all prompts are the same.
        """
        if self.prompts is None or not is_text_conditioned(self.pipeline):
            raise NotApplicable(f"{type(self.pipeline).__name__} is not conditioned on text.")
        distinct = list(dict.fromkeys(self.prompts))
        if len(distinct) < 2:
            raise NotApplicable("all prompts are the same.")
        return {prompt: self._of([prompt]).run() for prompt in (distinct[0], distinct[len(distinct) // 2])}

    @property
    def denoiser_dtype(self) -> torch.dtype:
        """The dtype of the denoiser's arithmetic; float32 where there is none."""
        part = denoiser(self.pipeline)
        return next(part.parameters()).dtype if part is not None else torch.float32

    @property
    def coarse_rounding(self) -> str:
        """Name of the denoiser's arithmetic where it has only three or four digits ("float16", "TF32"), else empty."""
        dtype = dtype_of(self.pipeline)
        if dtype not in ("", "float32", "float64"):
            return dtype
        return "TF32" if device_of(self.pipeline).type == "cuda" and _is_tf32_allowed() else ""

    def _of(self, prompts: Sequence[str] | None) -> Trials:
        """The same pipeline with other prompts."""
        return type(self)(self.pipeline, prompts, self.settings)

    def first_step(self, guidance_scale: float) -> torch.Tensor:
        """Latents (N, C, h, w), float64, after one inference step at a guidance scale.

        Raises NotApplicable for a pipeline without classifier-free guidance or without a step callback.
        """
        name = type(self.pipeline).__name__
        if not uses_guidance(self.pipeline):
            raise NotApplicable(f"{name} has no guidance_scale, or is distilled and does not use classifier-free guidance.")
        if not takes_step_callback(self.pipeline):
            raise NotApplicable(f"{name} has no callback_on_step_end, so the latents after its first step cannot be read.")
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

        return batch_size_of(self.pipeline, COUNT).run(first_steps)

    def latents(self) -> torch.Tensor:
        """Final latents (N, C, h, w), float32, of the plain run's seeds, unpacked where the pipeline packs them.

        Raises NotApplicable for a pipeline that returns no latents.
        """
        found = torch.from_numpy(
            np.concatenate(batch_size_of(self.pipeline, COUNT).run(lambda size: self._call(size, output_type="latent")))
        )
        if found.ndim == 3:
            height, width = image_size(self.pipeline, self.settings)
            found = self.pipeline._unpack_latents(found, height, width, self.pipeline.vae_scale_factor)
        config = self.pipeline.vae.config
        channels = config.get("latent_channels") or config.get("z_dim")
        if found.ndim != 4 or (channels is not None and found.shape[1] != channels):
            raise NotApplicable(f"{type(self.pipeline).__name__} returned shape {tuple(found.shape)} instead of latents.")
        return found

    def _call(self, size: int, **changes: Any) -> list[NDArray[np.floating[Any]]]:
        """The pipeline's output for the plain run's seeds, in batches of `size`."""
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


def _is_tf32_allowed() -> bool:
    """Whether CUDA may round float32 to TF32; torch refuses to answer by the old names once a new one was set."""
    try:
        return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        conv: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009 - unknown to type checkers
        return "tf32" in (torch.backends.cuda.matmul.fp32_precision, conv.fp32_precision)
