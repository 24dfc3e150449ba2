"""One denoiser call from the middle of a run, repeated with the pipeline's own arguments on other latents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.call import call_pipeline
from pytest_diffusion.models.capabilities import denoiser, guidance_groups, takes, uncompiled
from pytest_diffusion.models.levels import NoiseLevel, level_of_timestep
from pytest_diffusion.verdicts.errors import NotApplicable

PLAN, STEP = 4, 2
"""The third of four steps: about half of the noise is removed, and the image is not yet determined."""


class EnoughSeen(Exception):  # noqa: N818 - a signal, not an error
    """Ends a run whose remaining steps are not needed."""


@dataclass(frozen=True)
class DenoiserCall:
    """The arguments that the pipeline passes to its denoiser at one step, for given prompts, and the step's noise level."""

    pipeline: Any
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    level: NoiseLevel

    @classmethod
    def catch(cls, pipeline: Any, prompts: Sequence[str] | None, settings: Settings, *, seeds: Sequence[int]) -> DenoiserCall:
        """The denoiser's arguments at step `STEP` of a run; one sample for each seed, with its prompt where the model takes prompts.

        Raises NotApplicable where the noise level is not known.
        """
        network = _network(pipeline)
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))
            if len(calls) == STEP + 1:
                raise EnoughSeen

        handle = network.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with suppress(EnoughSeen), uncompiled(pipeline):
                changes = {"num_inference_steps": PLAN, **_no_class(pipeline, seeds)}
                call_pipeline(pipeline, prompts=prompts, seeds=seeds, settings=settings, **changes)
        finally:
            handle.remove()
        if len(calls) <= STEP:
            raise NotApplicable(f"{type(pipeline).__name__} calls its denoiser {len(calls)} times in {PLAN} steps.")
        return cls(pipeline, calls[STEP], level_of_timestep(pipeline.scheduler, pipeline.scheduler.timesteps[STEP]))

    def noised(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Latents (N, C, h, w) at the step's noise level: alpha·latents + sigma·noise."""
        return float(self.level.alpha) * latents + float(self.level.sigma) * noise

    def output(self, noised: torch.Tensor) -> torch.Tensor:
        """The denoiser's output for `noised` latents and the prompts, float32 (N, C, h, w), on the CPU."""
        args, kwargs = self.arguments
        name = "sample" if "sample" in kwargs else "hidden_states" if "hidden_states" in kwargs else None
        own = kwargs[name] if name else args[0]
        batch = self.pipeline._pack_latents(noised, *noised.shape) if own.ndim == 3 else noised
        count = len(batch)
        if len(own) % count or own.shape[1:] != batch.shape[1:]:
            raise NotApplicable(
                f"the denoiser's input has shape {tuple(own.shape)}, which does not match latents of shape {tuple(batch.shape)}."
            )
        batch = batch.repeat(len(own) // count, *[1] * (batch.ndim - 1)).to(own)
        given = (args, {**kwargs, name: batch}) if name else ((batch, *args[1:]), kwargs)
        with torch.no_grad():
            result = _network(self.pipeline)(*given[0], **given[1])
        output: torch.Tensor = result[0] if isinstance(result, tuple) else result.sample
        _, place = guidance_groups(self.pipeline, len(own) // count)
        rows = output[place * count : (place + 1) * count].float().cpu()
        if rows.ndim == 3:
            height, width = (side * self.pipeline.vae_scale_factor for side in noised.shape[-2:])
            rows = self.pipeline._unpack_latents(rows, height, width, self.pipeline.vae_scale_factor)
        # Learned variances are extra output channels.
        return rows[:, : noised.shape[1]]


def _no_class(pipeline: Any, seeds: Sequence[int]) -> dict[str, Any]:
    """For class-conditional models, the label for "no class": the classes of reference images are not known."""
    classes = (getattr(_network(pipeline), "config", None) or {}).get("num_embeds_ada_norm")
    return {"class_labels": [classes] * len(seeds)} if classes and takes(pipeline, "class_labels") else {}


def _network(pipeline: Any) -> torch.nn.Module:
    network = denoiser(pipeline)
    if network is None:
        raise NotApplicable(f"{type(pipeline).__name__} has no UNet or transformer.")
    return network
