"""Damage in code and settings, which weights and configurations do not show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.gate.damage import LOSSES_OF_REFERENCES, SCORES_OF_CLIP, Target, damage, kept_attribute
from pytest_diffusion.models.capabilities import is_text_conditioned, uses_guidance
from pytest_diffusion.models.schedulers import is_flow, num_train_timesteps
from pytest_diffusion.samples.generate import shared_batch_size
from pytest_diffusion.verdicts.errors import NotApplicable


@damage(
    "the denoiser is told a timestep that is {} too high",
    strengths=(1, 3, 10, 30),
    usual=10,
    in_code=True,
    sees=LOSSES_OF_REFERENCES,
    is_long=True,
)
def timestep_shift(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """Timesteps off by one, and by more, of a thousand."""
    part, total = target.denoiser, num_train_timesteps(target.pipeline.scheduler)
    forward, flows = part.forward, is_flow(target.pipeline.scheduler)

    def later(*args: Any, **kwargs: Any) -> Any:
        if "timestep" in kwargs:
            return forward(*args, **{**kwargs, "timestep": shifted(kwargs["timestep"])})
        return forward(args[0], shifted(args[1]), *args[2:], **kwargs)

    def shifted(timestep: Any) -> Any:
        told = torch.as_tensor(timestep)
        # Some networks of flows are told shares of the schedule.
        in_shares = flows and told.is_floating_point() and float(told.max()) <= 1
        highest = 1.0 if in_shares else float(total if told.is_floating_point() else total - 1)
        moved = told.float() + (strength / total if in_shares else strength)
        return moved.clamp(max=highest).to(told.dtype)

    # Not a hook: whoever asks the denoiser what it is told must see what the pipeline tells it.
    with kept_attribute(part, "forward", later):
        yield target.settings


@damage("one step in {}", strengths=(2, 4, 8), usual=8, in_code=True, sees=SCORES_OF_CLIP)
def too_few_steps(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """A fraction of the inference steps."""
    steps = target.settings.steps // int(strength)
    if steps < 1:
        raise NotApplicable(f"{target.settings.steps} steps cannot be divided by {strength:g}")
    yield replace(target.settings, steps=steps)


@damage("guidance is lost", in_code=True, sees=SCORES_OF_CLIP, is_long=True)
def guidance_lost(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """A guidance scale of 1."""
    scale = target.settings.guidance_scale
    if not uses_guidance(target.pipeline) or (scale is not None and scale <= 1):
        raise NotApplicable("it runs without guidance")
    yield replace(target.settings, guidance_scale=1.0)


@damage("red and blue are swapped", in_code=True, sees=LOSSES_OF_REFERENCES)
def channels_swapped(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """Decoded images are BGR in place of RGB."""
    yield from _decoded(target, lambda images: images[:, [2, 1, 0]])


@damage("{} of the images of a batch repeat its first one", strengths=(0.1, 0.25, 0.5, 1.0), usual=0.5, is_continuous=True, in_code=True)
def images_repeated(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """So many images of each batch, from its end, and at least one."""
    _require_batches(target)

    def repeated(images: torch.Tensor) -> torch.Tensor:
        kept = len(images) - math.ceil(strength * (len(images) - 1))
        return torch.cat([images[:kept], images[:1].expand(len(images) - kept, *images.shape[1:])])

    yield from _decoded(target, repeated)


@damage("each prompt is taken for the next one", in_code=True, sees=SCORES_OF_CLIP)
def prompts_shuffled(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """Within each batch."""
    pipeline = target.pipeline
    if not is_text_conditioned(pipeline) or not hasattr(pipeline, "encode_prompt"):
        raise NotApplicable("it encodes no prompts")
    if target.prompts is not None and len(set(target.prompts)) < 2:
        raise NotApplicable("all its prompts are the same")
    _require_batches(target)
    encode = pipeline.encode_prompt

    def moved(value: Any) -> Any:
        return [*value[1:], value[0]] if isinstance(value, list) and value and isinstance(value[0], str) else value

    def shuffled(*args: Any, **kwargs: Any) -> Any:
        own = {name: moved(value) if name.startswith("prompt") else value for name, value in kwargs.items()}
        return encode(*map(moved, args), **own)

    with kept_attribute(pipeline, "encode_prompt", shuffled):
        yield target.settings


def _require_batches(target: Target) -> None:
    """Raise NotApplicable where a batch holds one image."""
    if shared_batch_size(target.settings, target.pipeline).size < 2:
        raise NotApplicable("its batches hold one image; raise --diffusion-batch-size")


def _decoded(target: Target, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[Settings]:
    """Decoded images are changed by a function of (N, C, H, W)."""
    vae = target.vae
    decode = vae.decode

    def changed(*args: Any, **kwargs: Any) -> Any:
        result = decode(*args, **kwargs)
        return (change(result[0]), *result[1:]) if isinstance(result, tuple) else type(result)(sample=change(result.sample))

    with kept_attribute(vae, "decode", changed):
        yield target.settings
