"""Images along a semantic direction: between two prompts that differ in one attribute, at the same seeds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.prompts import DirectionPair
from pytest_diffusion.models.capabilities import denoiser, is_text_conditioned, uncompiled
from pytest_diffusion.samples.generate import generate_images, to_uint8
from pytest_diffusion.samples.seeds import seeds_of
from pytest_diffusion.verdicts.errors import NotApplicable

SEEDS = 32
SWEEP_SEEDS = 16
INNER = (0.25, 0.5, 0.75)
_CONDITIONS = ("encoder_hidden_states", "pooled_projections", "encoder_attention_mask")


@dataclass(frozen=True)
class Direction:
    """Images of two prompts at the same seeds, uint8 (N, 3, H, W), and of interpolated prompts at the first of these seeds."""

    pair: DirectionPair
    source_images: torch.Tensor
    target_images: torch.Tensor
    sweep: dict[float, torch.Tensor] = field(default_factory=dict)
    """Images by strength, from 0 (source) to 1 (target)."""


def run_direction(pipeline: Any, pair: DirectionPair, settings: Settings) -> Direction:
    """Images of both prompts at 32 seeds, and of interpolated prompts at 16; both numbers times the settings' effort.

    Raises NotApplicable for a model without prompts.
    """
    if not is_text_conditioned(pipeline):
        raise NotApplicable(f"{type(pipeline).__name__} is not conditioned on text.")

    seeds, sweep_seeds = settings.times_effort(SEEDS), settings.times_effort(SWEEP_SEEDS)

    def images(prompt: str, count: int = seeds) -> torch.Tensor:
        return torch.from_numpy(to_uint8(generate_images(pipeline, [prompt] * count, seeds_of(settings, count), settings))[0])

    source, target = images(pair.source), images(pair.target)
    sweep = {0.0: source[:sweep_seeds]}
    with _hearing(pipeline) as heard, uncompiled(pipeline):
        images(pair.target, 1)
    for strength in INNER:
        with _leaning(pipeline, heard, strength), uncompiled(pipeline):
            sweep[strength] = images(pair.source, sweep_seeds)
    return Direction(pair, source, target, {**sweep, 1.0: target[:sweep_seeds]})


@contextmanager
def _hearing(pipeline: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Records the denoiser's text inputs in the first call inside the block: tensors by argument name."""
    heard: dict[str, torch.Tensor] = {}

    def hear(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not heard:
            heard.update(_conditions(kwargs))

    with _hook(pipeline, hear):
        yield heard


@contextmanager
def _leaning(pipeline: Any, target: dict[str, torch.Tensor], strength: float) -> Iterator[None]:
    """Replaces every prompt's embedding inside the block by (1 - strength)·own + strength·target."""

    def lean(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        changed = dict(kwargs)
        for name, own in _conditions(kwargs).items():
            # The negative prompt is the same on both sides, so interpolation does not change it.
            other = _rows(target[name], len(own))
            between = torch.lerp(own.float(), other.float(), strength).to(own.dtype) if own.is_floating_point() else own
            if name in _CONDITIONS:
                changed[name] = between
            else:
                changed["added_cond_kwargs"] = {**changed["added_cond_kwargs"], name: between}
        return args, changed

    with _hook(pipeline, lean):
        yield


def _conditions(kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = {name: kwargs[name] for name in _CONDITIONS if isinstance(kwargs.get(name), torch.Tensor)}
    added = (kwargs.get("added_cond_kwargs") or {}).get("text_embeds")
    return {**found, "text_embeds": added} if isinstance(added, torch.Tensor) else found


def _rows(states: torch.Tensor, count: int) -> torch.Tensor:
    """States of one prompt, with guidance preceded by its negative prompt, repeated for a batch of `count` rows."""
    return states.repeat_interleave(count // len(states), 0)


@contextmanager
def _hook(pipeline: Any, hook: Any) -> Iterator[None]:
    network = denoiser(pipeline)
    if network is None:
        raise NotApplicable(f"{type(pipeline).__name__} has no UNet or transformer.")
    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
