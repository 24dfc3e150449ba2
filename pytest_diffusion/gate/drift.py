"""How far the candidate's images are from the baseline's: reported, never judged."""

from __future__ import annotations

import torch

from pytest_diffusion.gate.pairs import PairedRun
from pytest_diffusion.maths.similarity import psnr
from pytest_diffusion.maths.statistics import mean_error
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.quantiles import t95
from pytest_diffusion.verdicts.verdict import Measurement


def drift_of(pairs: PairedRun) -> Measurement:
    """Root mean square distance of paired images, as a share of that between the baseline's images of different seeds."""
    ours, theirs = pairs.candidate.images, pairs.baseline.images
    if ours is None or theirs is None:
        raise NotApplicable("the baseline was saved without its images.")
    if ours.shape != theirs.shape:
        raise NotApplicable(f"the images have shapes {tuple(ours.shape[1:])} and {tuple(theirs.shape[1:])}.")
    distance = _distances(ours, theirs)
    # Prompts are in the order of the list: the next but one half of the list away has other noise and another prompt.
    apart = float(_distances(theirs, theirs.roll(max(1, len(theirs) // 2), 0)).mean())
    share = distance / apart if apart else distance * 0
    half = t95(len(share) - 1) * mean_error(share) if len(share) > 1 else float("nan")
    value = float(share.mean())
    similar = psnr(ours.float() / 255, theirs.float() / 255)
    return Measurement(
        value,
        "distance to the baseline's images, as a share of that between two of its own",
        interval=(value - half, value + half) if half == half else None,
        num_samples=len(share),
        hint=f"Root mean square distance {float(distance.mean()):.3g} of 255 levels; mean PSNR {float(similar.mean()):.3g} dB.",
        unjudged="images of sound builds may lie far apart.",
        series={"rms": distance.tolist()},
    )


def _distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Root mean square difference of each pair of images, in levels of 255: (N,), float64."""
    parts = [(a.double() - b.double()).square().flatten(1).mean(1).sqrt() for a, b in zip(one.split(64), other.split(64), strict=True)]
    return torch.cat(parts)
