"""Checks of paths through latent space: no jump, no way back, no detour, no zigzag."""

from __future__ import annotations

import torch

from pytest_diffusion.checks import pictures, plots
from pytest_diffusion.checks.registry import check
from pytest_diffusion.samples.paths import LatentPaths
from pytest_diffusion.verdicts.verdict import Measurement


@check(
    "latent",
    "slerp between references has no jump",
    figure="largest over mean step of 17-frame paths, worst of 8",
    sees="a jump, and where",
    blind_to="a wrong picture that changes smoothly",
    plot=plots.slerp,
    pictures=pictures.slerp_strip,
)
def slerp_smooth(paths: LatentPaths) -> Measurement:
    """Largest over mean step between decoded frames of 17-frame slerps, the worst of 8 pairs of references."""
    figures = paths.figures
    worst = max(range(len(figures)), key=lambda index: figures[index].jump)
    frames, latents = paths.frames[worst], paths.latents[worst]
    weights = torch.linspace(0, 1, len(latents))[:, None, None, None]
    straight = (1 - weights) * latents[0] + weights * latents[-1]
    series = {
        "strip": pictures.grid_uri((frames * 255).round().to(torch.uint8), columns=len(frames)),
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


@check(
    "latent",
    "slerp moves steadily away from its start",
    figure="share of steps that do not come nearer to the start",
    sees="a path that runs back",
    blind_to="jumps and detours",
)
def slerp_drift(paths: LatentPaths) -> Measurement:
    """Share of steps on which the decoded frame does not come nearer to the first one, mean over 8 pairs."""
    values = torch.tensor([figures.drift for figures in paths.figures])
    return Measurement(float(values.mean()), "share of steps that drift away", num_samples=len(values))


@check(
    "latent",
    "slerp makes no detour",
    figure="path over chord, worst of 8",
    sees="a path that wanders",
    blind_to="jumps on a straight path",
)
def slerp_detour(paths: LatentPaths) -> Measurement:
    """Length of the decoded path over the distance between its ends, the worst of 8 pairs; 1 is a straight line."""
    values = [figures.over_chord for figures in paths.figures]
    worst = max(range(len(values)), key=lambda index: values[index])
    return Measurement(
        values[worst],
        "path over chord",
        num_samples=len(values),
        hint=f"Pair {worst} wanders most.",
    )


@check(
    "latent",
    "slerp makes no zigzag",
    figure="mean angle between successive steps in degrees, worst of 8",
    sees="a path that zigzags",
    blind_to="a smooth detour",
)
def slerp_curvature(paths: LatentPaths) -> Measurement:
    """Mean angle between successive steps of the decoded path in degrees, the worst of 8 pairs; 0 is straight, 90 a random walk."""
    values = [figures.curvature for figures in paths.figures]
    worst = max(range(len(values)), key=lambda index: values[index])
    return Measurement(values[worst], "mean angle between steps", "degrees", num_samples=len(values), hint=f"Pair {worst} turns most.")


def _norms(values: torch.Tensor) -> list[float]:
    return [float(norm) for norm in values.flatten(1).norm(dim=1)]
