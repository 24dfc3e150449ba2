"""Closed-form models as pipelines: `analytic:NAME` is a model fitted to digits, or to the images of a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image

from pytest_diffusion.analytic.base import AnalyticModel
from pytest_diffusion.analytic.registry import create_model
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.verdicts.errors import ModelError

_SIZE, _IMAGES = 32, 10_000


class AnalyticPipeline(DiffusionPipeline):  # type: ignore[misc]
    """An unconditional pipeline whose `unet` is a closed-form model and whose `scheduler` can be replaced."""

    def __init__(self, unet: AnalyticModel, scheduler: Any = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler if scheduler is not None else unet.scheduler)

    @property
    def default_sample_size(self) -> tuple[int, ...]:
        """Height and width of the samples."""
        return self.unet.image_shape[1:]  # type: ignore[no-any-return]

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images, as PIL, as float arrays (N, H, W, C) in [0, 1] ("np") or as tensors (N, C, H, W) in [0, 1] ("pt")."""
        output = self.unet.sample(
            batch_size,
            batch_size=batch_size,
            generator=generator,
            num_inference_steps=num_inference_steps,
            scheduler=self.scheduler,
        )
        images: Any = (output.images / 2 + 0.5).clamp(0, 1).cpu()
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = [Image.fromarray(np.squeeze((image * 255).round().astype(np.uint8))) for image in images]
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def load_analytic(value: str, *, settings: Settings) -> AnalyticPipeline:
    """The pipeline that `analytic:NAME` names, fitted to the reference: digits, or images at the settings' size (default 32).

    Raises SettingsError for an unknown name, and ModelError if there are no images, or if the fit fails.
    """
    name = value.partition(":")[2]
    reference = settings.reference or "digits"
    height, width = (8, 8) if reference == "digits" else (settings.height or _SIZE, settings.width or _SIZE)
    images = load_reference(reference, height=height, width=width, limit=_IMAGES).images
    if images is None:
        raise ModelError(f"--diffusion-model={value} needs images, but --diffusion-reference={reference} has only statistics.")
    grey = bool((images == images[:, :1]).all())
    pixels = (images[:, :1] if grey else images).float() / 127.5 - 1
    try:
        return AnalyticPipeline(create_model(name, pixels))
    except (ValueError, ImportError) as error:
        raise ModelError(f"--diffusion-model={value}: {error}") from error
