"""Outlier scores of reference latents and of synthetic outliers, computed once for all checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from pytest_diffusion.data.references import Reference, load_reference
from pytest_diffusion.maths.ood import OutlierDetector
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.verdicts.errors import NotApplicable

REFERENCES, HELD_OUT = 500, 200
MAX_DIMENSIONS = 2048


@dataclass(frozen=True)
class Outliers:
    """A detector fitted to half of the reference, the other half, and the codec that encodes both."""

    codec: LatentCodec
    detector: OutlierDetector
    held_out: torch.Tensor
    """Images, uint8 (N, 3, H, W), that were not used in the fit."""
    num_fitted: int

    @classmethod
    def of(cls, codec: LatentCodec, reference: Reference) -> Outliers:
        """A detector fitted to a reference. Raises NotApplicable for fewer than 20 reference images."""
        images = reference.require_images()
        half = min(len(images) // 2, REFERENCES)
        if half < 10:
            raise NotApplicable(f"the outlier detector needs at least 20 reference images; there are {len(images)}.")
        detector = OutlierDetector.fit(_flat(codec.encode(images[:half])))
        return cls(codec, detector, images[half : half + HELD_OUT], half)

    @cached_property
    def held_out_latents(self) -> torch.Tensor:
        """Latents (N, D) of the held-out references."""
        return _flat(self.codec.encode(self.held_out))

    def scores(self) -> dict[str, torch.Tensor]:
        """Outlier scores (N,) by kind: "held-out references" first, then each kind of outlier made from them."""
        generator = torch.Generator().manual_seed(0)
        found = {"held-out references": self.detector.scores(self.held_out_latents)}
        for name, make in KINDS.items():
            found[name] = self.detector.scores(_flat(self.codec.encode(make(self.held_out, generator))))
        return found

    def p_values(self) -> torch.Tensor:
        """Conformal p-values (N,) of the held-out references."""
        return self.detector.p_values(self.held_out_latents)


def _noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)


def _shuffled_patches(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image cut into 4 by 4 patches in a random order; border pixels fill a side that is no multiple of 4."""
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
    """Each image filled with its mean colour."""
    return images.float().mean((2, 3), keepdim=True).expand_as(images).round().to(torch.uint8)


def _blurred(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian blur with a standard deviation of an eighth of the shorter side: only the rough layout is left."""
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


KINDS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "noise": _noise,
    "shuffled patches": _shuffled_patches,
    "inverted": _inverted,
    "flat": _flat_colour,
    "blurred": _blurred,
    "handwritten digits": _digits,
}
"""Functions that make images of each kind from held-out references."""


def _flat(latents: torch.Tensor) -> torch.Tensor:
    """Latents (N, C, h, w) as (N, D), averaged over squares until D is at most 2048: a covariance has D² entries."""
    while latents[0].numel() > MAX_DIMENSIONS and min(latents.shape[-2:]) > 1:
        latents = F.avg_pool2d(latents, 2)
    return latents.flatten(1)
