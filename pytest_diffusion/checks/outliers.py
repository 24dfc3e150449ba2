"""Checks of out-of-distribution scores on latents: outliers of every standard kind stand out, references do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from pytest_diffusion.checks.registry import check
from pytest_diffusion.data.references import Reference, load_reference
from pytest_diffusion.maths.ood import OutlierDetector
from pytest_diffusion.maths.statistics import auroc, auroc_interval, wilson_interval
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement

REFERENCES, HELD_OUT = 500, 200
MAX_DIMENSIONS = 2048
JUDGED = "noise"
"""The kind that is an outlier whatever the references show."""
LEVEL = 0.05


@check("latent", "outliers score as outliers")
def ood_auroc(latents: Any, reference: Reference) -> Measurement:
    """AUROC of the outlier score against held-out references, for images of noise.

    Shuffled patches, inverted, flat and blurred pictures, and handwritten digits are shown beside it: how far they lie from
    the references is the references' own affair. Negatives of photographs are among them, as far as colours go.
    """
    fit, held_out = _split(reference)
    detector = OutlierDetector.fit(_flat(latents.encode(fit)))
    inliers = detector.scores(_flat(latents.encode(held_out)))
    generator = torch.Generator().manual_seed(0)
    values, intervals, scores = {}, {}, {"held-out references": inliers}
    for name, make in OUTLIERS.items():
        scores[name] = detector.scores(_flat(latents.encode(make(held_out, generator))))
        values[name] = auroc(inliers, scores[name])
        intervals[name] = auroc_interval(values[name], len(inliers), len(scores[name]))
    listed = ", ".join(f"{name} {value:.3f} [{intervals[name][0]:.3f}, {intervals[name][1]:.3f}]" for name, value in values.items())
    return Measurement(
        values[JUDGED],
        f"AUROC for {JUDGED}",
        interval=intervals[JUDGED],
        num_samples=len(inliers),
        num_reference=len(fit),
        series={"scores": {name: [float(score) for score in value] for name, value in scores.items()}, "auroc": values},
        hint=f"By kind: {listed}.",
    )


@check("latent", "references do not score as outliers")
def ood_false_alarms(latents: Any, reference: Reference) -> Measurement:
    """Share of held-out references whose conformal p-value is at most 0.05, which is its nominal rate."""
    fit, held_out = _split(reference)
    detector = OutlierDetector.fit(_flat(latents.encode(fit)))
    alarms = int((detector.p_values(_flat(latents.encode(held_out))) <= LEVEL).sum())
    return Measurement(
        alarms / len(held_out),
        "share of references flagged as outliers",
        interval=wilson_interval(alarms, len(held_out)),
        num_samples=len(held_out),
        num_reference=len(fit),
    )


def _noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)


def _shuffled_patches(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image cut into 4 by 4 patches in a random order; pixels beyond a multiple of 4 are repeated at the border."""
    count, channels, height, width = images.shape
    rows, columns = height // 4, width // 4
    cut = images[..., : rows * 4, : columns * 4].reshape(count, channels, 4, rows, 4, columns).permute(0, 2, 4, 1, 3, 5)
    order = torch.rand(count, 16, generator=generator).argsort(1)
    patches = cut.reshape(count, 16, channels, rows, columns)[torch.arange(count)[:, None], order]
    whole = patches.reshape(count, 4, 4, channels, rows, columns).permute(0, 3, 1, 4, 2, 5).reshape(count, channels, rows * 4, columns * 4)
    return F.pad(whole.float(), (0, width - columns * 4, 0, height - rows * 4), mode="replicate").to(torch.uint8)


def _inverted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 255 - images


def _flat_colour(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image's mean colour everywhere."""
    return images.float().mean((2, 3), keepdim=True).expand_as(images).round().to(torch.uint8)


def _blurred(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian blur of an eighth of the side: of the picture only the rough layout is left."""
    height, width = images.shape[-2:]
    sigma = min(height, width) / 8
    radius = min(int(3 * sigma), min(height, width) - 1)
    line = torch.exp(-(torch.arange(-radius, radius + 1).float() ** 2) / (2 * sigma**2))
    line = (line / line.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images.float(), (radius,) * 4, mode="reflect")
    smooth = F.conv2d(F.conv2d(padded, line[:, :, None], groups=len(line)), line[:, :, :, None], groups=len(line))
    return smooth.round().to(torch.uint8)


def _digits(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    digits = load_reference("digits", height=images.shape[-2], width=images.shape[-1], limit=len(images)).require_images()
    return digits[torch.arange(len(images)) % len(digits)]


OUTLIERS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "noise": _noise,
    "shuffled patches": _shuffled_patches,
    "inverted": _inverted,
    "flat": _flat_colour,
    "blurred": _blurred,
    "handwritten digits": _digits,
}


def _flat(latents: torch.Tensor) -> torch.Tensor:
    """Latents (N, C, h, w) as (N, D), averaged over squares until D is at most 2048: a covariance has D² entries."""
    while latents[0].numel() > MAX_DIMENSIONS and min(latents.shape[-2:]) > 1:
        latents = F.avg_pool2d(latents, 2)
    return latents.flatten(1)


def _split(reference: Reference) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference images to fit on, and others held out."""
    images = reference.require_images()
    half = min(len(images) // 2, REFERENCES)
    if half < 10:
        raise NotApplicable(f"{len(images)} reference images are too few to fit and to hold out; at least 20 are needed.")
    return images[:half], images[half : half + HELD_OUT]
