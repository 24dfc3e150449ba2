"""Sound changes, which a gate must let pass: what it calls worse among them is a false alarm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.gate.damage import Target, damage, kept_attribute, quantised_weights
from pytest_diffusion.gate.floor import other_kernels, rounded_weights
from pytest_diffusion.models.capabilities import modules
from pytest_diffusion.verdicts.errors import NotApplicable


@damage("weights rounded to bfloat16", sound="copy")
def bfloat16_weights(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """All weights, kept in their dtype."""
    weights = [weight for part in modules(target.pipeline).values() for weight in part.parameters()]
    if any(weight.is_meta for weight in weights):
        raise NotApplicable("its weights are not in memory as a whole")
    if all(weight.dtype == torch.bfloat16 for weight in weights):
        raise NotApplicable("its weights are of bfloat16 already")
    with rounded_weights(target.pipeline):
        yield target.settings


@damage("weights rounded to 8 bits", sound="copy", is_long=True)
def int8_weights(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """Matrices of denoiser and text encoder, one scale for each row."""
    with quantised_weights(target, 8):
        yield target.settings


@damage("batches of another size and another attention kernel", in_code=True, sound="copy", is_long=True)
def other_batches(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """Seven samples in a batch; torch's plain attention."""
    with other_kernels(target.pipeline):
        yield replace(target.settings, batch_size=7)


@damage("another solver with as many steps", sound="fine-tune", is_long=True)
def other_solver(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """DPM-Solver++, or for flows the multistep UniPC, from the scheduler's own configuration."""
    import diffusers

    own = target.pipeline.scheduler
    fitting = {one.__name__ for one in getattr(own, "compatibles", [])} - {type(own).__name__}
    name = next((one for one in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler") if one in fitting), None)
    if name is None:
        raise NotApplicable(f"no other solver fits {type(own).__name__}")
    with kept_attribute(target.pipeline, "scheduler", getattr(diffusers, name).from_config(own.config)):
        yield target.settings


@damage("images of other seeds", in_code=True, sound="fine-tune", is_long=True)
def other_seeds(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """The same model and prompts with other noise."""
    yield replace(target.settings, seed=target.settings.seed + 1_000_003)
