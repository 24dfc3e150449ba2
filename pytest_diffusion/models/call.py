"""One call of a pipeline: images in [0, 1], a generator for each sample, and only arguments that the pipeline takes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.capabilities import call_parameters, is_text_conditioned
from pytest_diffusion.verdicts.errors import ModelError


def call_pipeline(
    pipeline: Any,
    *,
    prompts: Sequence[str] | None,
    seeds: Sequence[int],
    settings: Settings,
    output_type: str = "np",
    **changes: Any,
) -> NDArray[np.floating[Any]]:
    """Images in [0, 1], float (N, H, W, 3), one for each seed; non-finite values are kept as they are.

    Each sample has its own generator, so its noise does not depend on the batch. With
    `output_type="latent"` the latents (N, C, h, w) are returned.
    """
    parameters = call_parameters(pipeline)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    arguments: dict[str, Any] = {"generator": generators, "output_type": output_type, "num_inference_steps": settings.steps}
    for name in ("guidance_scale", "height", "width"):
        if getattr(settings, name) is not None and name in parameters:
            arguments[name] = getattr(settings, name)
    if is_text_conditioned(pipeline):
        if prompts is None or len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts or ())} prompts for {len(seeds)} seeds; a text-conditioned pipeline needs one each.")
        arguments["prompt"] = list(prompts)
    elif "class_labels" in parameters:
        arguments["class_labels"] = [seed % 1000 for seed in seeds]
    else:
        arguments["batch_size"] = len(seeds)
    arguments |= changes
    unknown = [name for name in arguments if name not in parameters and not _takes_any(pipeline)]
    for name in unknown:
        if name not in ("generator", "output_type", "num_inference_steps", "batch_size"):
            raise ModelError(f"{type(pipeline).__name__} does not take {name}.")
        arguments.pop(name)
    bar = getattr(pipeline, "_progress_bar_config", None)
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)
    try:
        with torch.no_grad(), np.errstate(invalid="ignore"):
            images = pipeline(**arguments).images
    finally:
        if hasattr(pipeline, "set_progress_bar_config"):
            pipeline._progress_bar_config = bar or {}
    if output_type == "latent":
        return np.asarray(images.float().cpu() if isinstance(images, torch.Tensor) else images)
    return _as_unit_images(images, len(seeds), type(pipeline).__name__)


def _as_unit_images(images: Any, count: int, name: str) -> NDArray[np.floating[Any]]:
    """The pipeline's images as floats in [0, 1], (N, H, W, C). Raises ModelError for another shape, count or range."""
    if isinstance(images, torch.Tensor):
        images = (images if images.dtype == torch.uint8 else images.float()).cpu().numpy()
    array = np.stack([np.asarray(image) for image in images]) if isinstance(images, list) else np.asarray(images)
    if array.ndim == 4 and array.shape[-1] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or len(array) != count:
        raise ModelError(f"{name} returned images of shape {array.shape} for {count} seeds; expected ({count}, H, W, 3).")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255
    finite = array[np.isfinite(array)]
    if finite.size and (finite.min() < -1e-3 or finite.max() > 1 + 1e-3):
        raise ModelError(f"{name} returned floats between {finite.min():.3g} and {finite.max():.3g}; expected images in [0, 1] or uint8.")
    return array


def _takes_any(pipeline: Any) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(type(pipeline).__call__).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds
