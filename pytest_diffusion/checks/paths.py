"""Checks of paths through latent space: no jump, no way back, no detour, no zigzag."""

from __future__ import annotations

from typing import Any

import torch

from pytest_diffusion.checks.registry import check
from pytest_diffusion.checks.thumbnails import grid_uri
from pytest_diffusion.verdicts.verdict import Measurement


@check("latent", "slerp between references has no jump")
def slerp_smooth(paths: Any) -> Measurement:
    """Largest over mean step between decoded frames of 17-frame slerps, the worst of 8 pairs of references."""
    figures = paths.figures
    worst = max(range(len(figures)), key=lambda index: figures[index].jump)
    frames, latents = paths.frames[worst], paths.latents[worst]
    weights = torch.linspace(0, 1, len(latents))[:, None, None, None]
    straight = (1 - weights) * latents[0] + weights * latents[-1]
    series = {
        "strip": grid_uri((frames * 255).round().to(torch.uint8), columns=len(frames)),
        "steps": _norms(frames[1:] - frames[:-1]),
        "slerp_norms": _norms(latents),
        "lerp_norms": _norms(straight),
    }
    return Measurement(
        figures[worst].jump,
        "largest over mean step",
        num_samples=len(figures),
        series=series,
        hint=f"The jump lies between frames {figures[worst].jump_at} and {figures[worst].jump_at + 1} of pair {worst}.",
    )


@check("latent", "slerp drifts steadily away from its start")
def slerp_drift(paths: Any) -> Measurement:
    """Share of steps on which the decoded frame does not come nearer to the first one, mean over 8 pairs."""
    values = torch.tensor([figures.drift for figures in paths.figures])
    return Measurement(float(values.mean()), "share of steps that drift away", num_samples=len(values))


@check("latent", "slerp makes no detour")
def slerp_detour(paths: Any) -> Measurement:
    """Length of the decoded path over the distance between its ends, the worst of 8 pairs; 1 is a straight line."""
    values = [figures.over_chord for figures in paths.figures]
    worst = max(range(len(values)), key=lambda index: values[index])
    return Measurement(
        values[worst],
        "path over chord",
        num_samples=len(values),
        hint=f"Pair {worst} wanders most.",
    )


@check("latent", "slerp makes no zigzag")
def slerp_curvature(paths: Any) -> Measurement:
    """Mean angle between successive steps of the decoded path in degrees, the worst of 8 pairs; 0 is straight, 90 a random walk."""
    values = [figures.curvature for figures in paths.figures]
    worst = max(range(len(values)), key=lambda index: values[index])
    return Measurement(values[worst], "mean angle between steps", "degrees", num_samples=len(values), hint=f"Pair {worst} turns most.")


def _norms(values: torch.Tensor) -> list[float]:
    return [float(norm) for norm in values.flatten(1).norm(dim=1)]
