"""Decoded paths between encoded references: the input of the interpolation checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pytest_diffusion.data.references import Reference
from pytest_diffusion.maths.interpolation import PathFigures, path_figures, slerp
from pytest_diffusion.verdicts.errors import NotApplicable

PAIRS, FRAMES = 8, 17


@dataclass(frozen=True)
class LatentPaths:
    """Spherical interpolations between pairs of encoded references: frames in [0, 1], float32, each (frames, 3, H, W), and latents."""

    frames: list[torch.Tensor]
    latents: list[torch.Tensor]
    """Each (frames, C, h, w)."""

    @property
    def figures(self) -> list[PathFigures]:
        """Figures of each path."""
        return [path_figures(frames) for frames in self.frames]


def latent_paths(latents: Any, reference: Reference, *, pairs: int = PAIRS, frames: int = FRAMES) -> LatentPaths:
    """Paths between references 0 and 1, 2 and 3, and so on. Raises NotApplicable for fewer than two images."""
    images = reference.require_images()[: 2 * pairs]
    if len(images) < 2:
        raise NotApplicable(f"a path needs 2 reference images; there are {len(images)}.")
    encoded = latents.encode(images[: len(images) // 2 * 2])
    paths = slerp(encoded[::2], encoded[1::2], torch.linspace(0, 1, frames), batch_dims=1).unbind(1)
    return LatentPaths([latents.decode(path) for path in paths], list(paths))
