"""The pairs in which the candidate lost most, as pictures for the report."""

from __future__ import annotations

from typing import Any

import torch

from pytest_diffusion.checks.pictures import data_uri
from pytest_diffusion.features.image_scores import TONES
from pytest_diffusion.gate.figures import figure_named
from pytest_diffusion.gate.pairs import PairedRun

SHOWN = 8
SLICES_SHOWN, PAIRS_OF_SLICE = 4, 3
_STRETCH = 4
"""Differences are shown so many times larger, around grey."""


def worst_pairs(run: PairedRun, *, count: int = SHOWN) -> list[dict[str, Any]]:
    """Prompt, seed, images (baseline, candidate, difference) and scores of the pairs that lost most, worst first.

    A pair's loss is the largest of its scores' losses, in standard deviations of the baseline's scores; without scores of content, it
    is the distance of its images. Empty where images of either side are not at hand.
    """
    ours, theirs = run.candidate, run.baseline
    pictures = _pictures(run)
    if pictures is None:
        return []
    names = [name for name in ours.scores if name in theirs.scores and name not in TONES]
    losses = [_loss(ours.scores[name], theirs.scores[name], figure_named(name).direction or 1) for name in names]
    if not losses:
        distance = (pictures[0].float() - pictures[1].float()).square().flatten(1).mean(1)
        losses = [distance.double()]
    order = torch.stack(losses).amax(0).argsort(descending=True)[:count].tolist()
    return [_pair(run, index, names) for index in order]


def worst_of_slices(run: PairedRun) -> list[dict[str, Any]]:
    """For the first slices that are worse: name, figure, and the pairs that lost most there. Empty where images are not at hand."""
    named = [one for one in run.slices or [] if one.is_named][:SLICES_SHOWN] if _pictures(run) is not None else []
    return [
        {"slice": one.name, "figure": one.figure, "pairs": [_pair(run, index, [one.figure]) for index in one.worst[:PAIRS_OF_SLICE]]}
        for one in named
    ]


def _pictures(run: PairedRun) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The images of candidate and baseline, where both are at hand and have one shape."""
    ours, theirs = run.candidate.images, run.baseline.images
    return (ours, theirs) if ours is not None and theirs is not None and ours.shape == theirs.shape else None


def _loss(candidate: torch.Tensor, baseline: torch.Tensor, direction: int) -> torch.Tensor:
    spread = float(baseline.std()) if len(baseline) > 1 else 0.0
    return direction * (baseline - candidate) / (spread or 1.0)


def _pair(run: PairedRun, index: int, names: list[str]) -> dict[str, Any]:
    assert run.candidate.images is not None
    assert run.baseline.images is not None
    ours, theirs = run.candidate.images[index], run.baseline.images[index]
    difference = (128 + _STRETCH * (ours.int() - theirs.int())).clamp(0, 255).to(torch.uint8)
    told = [f"{name} {float(run.baseline.scores[name][index]):.4g} → {float(run.candidate.scores[name][index]):.4g}" for name in names]
    return {
        "prompt": run.prompts[index] if run.prompts is not None else "",
        "seed": run.seeds[index],
        "images": [data_uri(image) for image in (theirs, ours, difference)],
        "scores": ", ".join(told),
    }
