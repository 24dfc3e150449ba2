"""Conversion of images to the denoiser's latents and back; scaling and shift are applied once, as in pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pytest_diffusion.data.batches import batch_size_of
from pytest_diffusion.models.capabilities import device_of, has_vae
from pytest_diffusion.models.memory import is_offloaded
from pytest_diffusion.verdicts.errors import NotApplicable


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

    upcasts: bool = False
    """Whether the pipeline decodes in float32 although the VAE's weights are float16."""
    device: torch.device | None = None
    """Device for the inputs of an offloaded VAE, whose weights are on the accelerator only while it runs; else None."""

    @classmethod
    def of(cls, pipeline: Any) -> LatentCodec:
        """The codec of a pipeline's VAE; float32 where the pipeline decodes in float32. Raises NotApplicable for a pixel-space model."""
        if not has_vae(pipeline):
            raise NotApplicable(f"{type(pipeline).__name__} has no VAE: it works on pixels.")
        vae, config = pipeline.vae, pipeline.vae.config
        # Only the pipelines that know this method read the VAE's `force_upcast`, which is true for most VAEs.
        upcasts = bool(config.get("force_upcast")) and hasattr(type(pipeline), "upcast_vae") and vae.dtype == torch.float16
        scaling = config.get("scaling_factor")
        shift = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        spread = config.get("latents_std") or [1.0]
        shift_of, spread_of = (torch.tensor(values).float().reshape(1, -1, 1, 1) for values in (shift, spread))
        device = device_of(pipeline) if is_offloaded([vae]) else None
        return cls(vae, 1.0 if scaling is None else float(scaling), shift_of, spread_of, upcasts, device)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled latents of uint8 images (N, 3, H, W): the posterior mean, float32 (N, C, h, w).

        Raises ModelError where memory runs out for a single image.
        """

        def encode(batch: torch.Tensor) -> torch.Tensor:
            raw = _raw_latents(self.vae.encode(self._moved(batch.float() / 127.5 - 1))).float().cpu()
            return (raw - self.shift) * self.scaling_factor / self.spread

        return self._in_batches(encode, images, images.shape[-2] * images.shape[-1])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1], float32 (N, 3, H, W), of scaled latents (N, C, h, w).

        Raises ModelError where memory runs out for a single image.
        """

        def decode(batch: torch.Tensor) -> torch.Tensor:
            # Same dtype and order of operations as in pipelines, so that images are equal to the last bit.
            scaled, spread, shift = (self._moved(values) for values in (batch, self.spread, self.shift))
            raw = scaled * spread / self.scaling_factor + shift
            images: torch.Tensor = (self.vae.decode(raw).sample * 0.5 + 0.5).clamp(0, 1).float().cpu()
            return images

        # One latent position covers about 8x8 pixels.
        return self._in_batches(decode, latents, 64 * latents.shape[-2] * latents.shape[-1])

    def _moved(self, values: torch.Tensor) -> torch.Tensor:
        parameter = next(self.vae.parameters())
        return values.to(self.device or parameter.device, parameter.dtype)

    def _in_batches(self, work: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor, pixels: int) -> torch.Tensor:
        """`work` on batches of at most 32 images, fewer for large images: a decoder's last layers store hundreds of values per pixel."""

        def run() -> torch.Tensor:
            return torch.cat(batch.parts(len(values), lambda rows: work(values[rows])))

        batch = batch_size_of(self.vae, max(1, min(32, 4 * 512 * 512 // pixels)))
        with torch.no_grad():
            if not self.upcasts:
                return run()
            try:
                self.vae.to(torch.float32)
                return run()
            finally:
                self.vae.to(torch.float16)


def _raw_latents(encoded: Any) -> torch.Tensor:
    """The mean of a VAE's posterior, or the latents of an encoder without one (VQ, tiny, deep compression)."""
    if hasattr(encoded, "latent_dist"):
        mean: torch.Tensor = encoded.latent_dist.mode()
        return mean
    latents: torch.Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return latents
