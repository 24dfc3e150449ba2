"""Images to the latents that the denoiser sees, and back: scaling and shift applied once, as pipelines do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pytest_diffusion.adapters.pipelines import has_vae
from pytest_diffusion.errors import NotApplicable


@dataclass(frozen=True)
class LatentCodec:
    """Encoder and decoder of a VAE with its `scaling_factor` and `shift_factor`."""

    vae: Any
    scaling_factor: float
    shift_factor: float

    @classmethod
    def of(cls, pipeline: Any) -> LatentCodec:
        """The codec of a pipeline's VAE. Raises NotApplicable for a pixel-space model."""
        if not has_vae(pipeline):
            raise NotApplicable(f"{type(pipeline).__name__} has no VAE: it works on pixels.")
        config = pipeline.vae.config
        scaling = getattr(config, "scaling_factor", None)
        return cls(pipeline.vae, 1.0 if scaling is None else float(scaling), float(getattr(config, "shift_factor", None) or 0.0))

    def encode(self, images: torch.Tensor, *, batch_size: int = 32) -> torch.Tensor:
        """Scaled latents (N, C, h, w), float32, the mean of the posterior, of uint8 images (N, 3, H, W)."""
        parameter = next(self.vae.parameters())
        latents = []
        with torch.no_grad():
            for batch in images.split(batch_size):
                pixels = (batch.float() / 127.5 - 1).to(parameter.device, parameter.dtype)
                posterior = self.vae.encode(pixels)
                mean = posterior.latent_dist.mode() if hasattr(posterior, "latent_dist") else posterior.latents
                latents.append(((mean.float() - self.shift_factor) * self.scaling_factor).cpu())
        return torch.cat(latents)

    def decode(self, latents: torch.Tensor, *, batch_size: int = 32) -> torch.Tensor:
        """Images in [0, 1], float32 (N, 3, H, W), of scaled latents (N, C, h, w)."""
        parameter = next(self.vae.parameters())
        images = []
        with torch.no_grad():
            for batch in latents.split(batch_size):
                raw = (batch / self.scaling_factor + self.shift_factor).to(parameter.device, parameter.dtype)
                images.append((self.vae.decode(raw).sample.float() / 2 + 0.5).clamp(0, 1).cpu())
        return torch.cat(images)
