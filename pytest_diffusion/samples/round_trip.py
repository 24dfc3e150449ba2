"""Reference images after encoding and decoding, computed once for all checks of the VAE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from pytest_diffusion.data.references import Reference
from pytest_diffusion.models.latents import LatentCodec

IMAGES = 200


@dataclass(frozen=True)
class RoundTrip:
    """Images, uint8 (N, 3, H, W), their scaled latents (N, C, h, w), and the decoded images."""

    codec: LatentCodec
    images: torch.Tensor
    latents: torch.Tensor

    @classmethod
    def of(cls, codec: LatentCodec, reference: Reference, *, count: int = IMAGES) -> RoundTrip:
        """The round trip of the first `count` references. Raises NotApplicable for a reference that holds only statistics."""
        images = reference.require_images()[:count]
        return cls(codec, images, codec.encode(images))

    @cached_property
    def decoded(self) -> torch.Tensor:
        """Decoded images in [0, 1], float32 (N, 3, H, W)."""
        return self.codec.decode(self.latents)
