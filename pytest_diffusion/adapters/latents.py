"""Images to the latents that the denoiser sees, and back: scaling and shift applied once, as pipelines do."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from pytest_diffusion.adapters.pipelines import has_vae
from pytest_diffusion.errors import NotApplicable


@dataclass(frozen=True, eq=False)
class LatentCodec:
    """Encoder and decoder of a VAE with its `scaling_factor`, and its shift and spread per channel.

    Scaled latents are (raw − shift)·scaling_factor/spread. Tiling and slicing stay as they are set on the VAE.
    """

    vae: Any
    scaling_factor: float
    shift: torch.Tensor
    """(1, C or 1, 1, 1), float32: the configuration's `shift_factor`, or `latents_mean` per channel."""
    spread: torch.Tensor
    """(1, C or 1, 1, 1), float32: the configuration's `latents_std` per channel, else 1."""

    @classmethod
    def of(cls, pipeline: Any) -> LatentCodec:
        """The codec of a pipeline's VAE; in float32 where the VAE asks for it. Raises NotApplicable for a pixel-space model."""
        if not has_vae(pipeline):
            raise NotApplicable(f"{type(pipeline).__name__} has no VAE: it works on pixels.")
        vae, config = pipeline.vae, pipeline.vae.config
        if config.get("force_upcast") and next(vae.parameters()).dtype == torch.float16:
            vae = copy.deepcopy(vae).float()
        scaling = config.get("scaling_factor")
        shift = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        spread = config.get("latents_std") or [1.0]
        shift_of, spread_of = (torch.tensor(values).float().reshape(1, -1, 1, 1) for values in (shift, spread))
        return cls(vae, 1.0 if scaling is None else float(scaling), shift_of, spread_of)

    def encode(self, images: torch.Tensor, *, batch_size: int = 32) -> torch.Tensor:
        """Scaled latents (N, C, h, w), float32, the mean of the posterior, of uint8 images (N, 3, H, W)."""
        parameter = next(self.vae.parameters())
        latents = []
        with torch.no_grad():
            for batch in images.split(batch_size):
                pixels = (batch.float() / 127.5 - 1).to(parameter.device, parameter.dtype)
                latents.append((_raw_latents(self.vae.encode(pixels)).float().cpu() - self.shift) * self.scaling_factor / self.spread)
        return torch.cat(latents)

    def decode(self, latents: torch.Tensor, *, batch_size: int = 32) -> torch.Tensor:
        """Images in [0, 1], float32 (N, 3, H, W), of scaled latents (N, C, h, w)."""
        parameter = next(self.vae.parameters())
        images = []
        with torch.no_grad():
            for batch in latents.split(batch_size):
                # In the VAE's own dtype and order, as pipelines do: then their images are the same to the last bit.
                scaled, spread, shift = (values.to(parameter.device, parameter.dtype) for values in (batch, self.spread, self.shift))
                raw = scaled * spread / self.scaling_factor + shift
                images.append((self.vae.decode(raw).sample * 0.5 + 0.5).clamp(0, 1).float().cpu())
        return torch.cat(images)


def _raw_latents(encoded: Any) -> torch.Tensor:
    """The mean of a VAE's posterior, or the latents of an encoder without one (VQ, tiny, deep compression)."""
    if hasattr(encoded, "latent_dist"):
        mean: torch.Tensor = encoded.latent_dist.mode()
        return mean
    latents: torch.Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return latents
