"""One denoiser call from the middle of a run, repeated with the pipeline's own arguments on other latents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.call import call_pipeline
from pytest_diffusion.models.capabilities import denoiser, guidance_groups, takes, uncompiled
from pytest_diffusion.models.levels import NoiseLevel, level_of_timestep
from pytest_diffusion.models.schedulers import num_train_timesteps
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
    timestep: float
    """The scheduler's timestep of the step."""
    groups: tuple[int, int]
    """Predictions that the call stacks in its batch, and the index of the one for the prompt."""

    @classmethod
    def catch(
        cls, pipeline: Any, prompts: Sequence[str] | None, settings: Settings, *, seeds: Sequence[int], step: int = STEP, **changes: Any
    ) -> DenoiserCall:
        """The denoiser's arguments at a step of a run; one sample for each seed, with its prompt where the model takes prompts.

        Steps before it are evaluated. `changes` are arguments of the pipeline's call.
        Raises NotApplicable where the noise level is not known.
        """
        network = _network(pipeline)
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))
            if len(calls) == step + 1:
                raise EnoughSeen

        handle = network.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with suppress(EnoughSeen), uncompiled(pipeline):
                own = {"num_inference_steps": PLAN, **_no_class(pipeline, seeds), **changes}
                call_pipeline(pipeline, prompts=prompts, seeds=seeds, settings=settings, **own)
        finally:
            handle.remove()
        if len(calls) <= step:
            raise NotApplicable(f"{type(pipeline).__name__} calls its denoiser {len(calls)} times in {PLAN} steps.")
        timestep = pipeline.scheduler.timesteps[step]
        rows = len(_latents_of(calls[step]))
        groups = guidance_groups(pipeline, rows // len(seeds))
        return cls(pipeline, calls[step], level_of_timestep(pipeline.scheduler, timestep), float(timestep), groups)

    def at(self, timestep: float) -> DenoiserCall:
        """The same call at another timestep of the scheduler, whose noise level its timesteps alone must determine.

        Raises NotApplicable where the denoiser's argument is not a multiple of the scheduler's timestep.
        """
        args, kwargs = self.arguments
        own = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1])
        factor = float(own.flatten()[0]) / self.timestep if self.timestep else float("nan")
        if not (abs(factor - 1) < 1e-3 or abs(factor * num_train_timesteps(self.pipeline.scheduler) - 1) < 1e-3):
            raise NotApplicable(
                f"{type(self.pipeline).__name__} gives its denoiser {float(own.flatten()[0]):.4g} at timestep {self.timestep:.4g}."
            )
        changed = torch.full_like(own, timestep * (1 if abs(factor - 1) < 1e-3 else factor))
        given = (args, {**kwargs, "timestep": changed}) if "timestep" in kwargs else ((args[0], changed, *args[2:]), kwargs)
        return replace(self, arguments=given, level=level_of_timestep(self.pipeline.scheduler, timestep), timestep=timestep)

    def noised(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Latents (N, C, h, w) at the step's noise level: alpha·latents + sigma·noise."""
        return float(self.level.alpha) * latents + float(self.level.sigma) * noise

    def output(self, noised: torch.Tensor) -> torch.Tensor:
        """The denoiser's output for `noised` latents and the prompts, float32 (N, C, h, w), on the CPU."""
        args, kwargs = self.arguments
        name = _latents_name(kwargs)
        own = _latents_of(self.arguments)
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
        _, place = self.groups
        rows = output[place * count : (place + 1) * count].float().cpu()
        if rows.ndim == 3:
            height, width = (side * self.pipeline.vae_scale_factor for side in noised.shape[-2:])
            rows = self.pipeline._unpack_latents(rows, height, width, self.pipeline.vae_scale_factor)
        # Learned variances are extra output channels.
        return rows[:, : noised.shape[1]]


def _latents_name(kwargs: dict[str, Any]) -> str | None:
    """The keyword by which a denoiser gets its latents; None where they are its first argument."""
    return next((name for name in ("sample", "hidden_states") if name in kwargs), None)


def _latents_of(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> torch.Tensor:
    args, kwargs = arguments
    name = _latents_name(kwargs)
    latents: torch.Tensor = kwargs[name] if name else args[0]
    return latents


def _no_class(pipeline: Any, seeds: Sequence[int]) -> dict[str, Any]:
    """For class-conditional models, the label for "no class": the classes of reference images are not known."""
    classes = (getattr(_network(pipeline), "config", None) or {}).get("num_embeds_ada_norm")
    return {"class_labels": [classes] * len(seeds)} if classes and takes(pipeline, "class_labels") else {}


def _network(pipeline: Any) -> torch.nn.Module:
    network = denoiser(pipeline)
    if network is None:
        raise NotApplicable(f"{type(pipeline).__name__} has no UNet or transformer.")
    return network
