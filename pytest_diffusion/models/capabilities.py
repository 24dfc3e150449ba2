"""What a pipeline can do and where it runs, read from its parts and signature, not from its class name."""

from __future__ import annotations

import inspect
import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.memory import is_offloaded
from pytest_diffusion.models.schedulers import has_own_sigma_range, is_flow


def device_of(pipeline: Any) -> torch.device:
    """Device of the denoiser's weights; for an offloaded pipeline, the device on which it runs."""
    if is_offloaded(modules(pipeline).values()):
        return torch.device(pipeline._execution_device)
    tensor = first_tensor(pipeline)
    return tensor.device if tensor is not None else torch.device("cpu")


def dtype_of(pipeline: Any) -> str:
    """The denoiser's dtype, as "float32"; empty where there is none."""
    tensor = first_tensor(pipeline)
    return str(tensor.dtype).removeprefix("torch.") if tensor is not None else ""


def modules(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The pipeline's torch modules by name."""
    components = getattr(pipeline, "components", None) or vars(pipeline)
    return {name: part for name, part in components.items() if isinstance(part, torch.nn.Module)}


def denoiser(pipeline: Any) -> torch.nn.Module | None:
    """The UNet or transformer, without the wrapper of torch.compile; None where the pipeline has neither."""
    part = getattr(pipeline, "unet", None)
    part = part if part is not None else getattr(pipeline, "transformer", None)
    return getattr(part, "_orig_mod", part)


def uncompiled(pipeline: Any) -> AbstractContextManager[Any]:
    """A context in which a compiled denoiser runs uncompiled, so that hooks on it are called."""
    if is_compiled(pipeline):
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


def is_compiled(pipeline: Any) -> bool:
    """Whether a part of the pipeline, or a part of a part, is compiled."""
    parts = [module for part in modules(pipeline).values() for module in part.modules()]
    return any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None for part in parts)


def is_text_conditioned(pipeline: Any) -> bool:
    """Whether the pipeline takes a prompt and has an encoder for it."""
    return getattr(pipeline, "text_encoder", None) is not None and "prompt" in call_parameters(pipeline)


def has_vae(pipeline: Any) -> bool:
    """Whether images are decoded from latents by a VAE with an encoder."""
    vae = getattr(pipeline, "vae", None)
    return vae is not None and hasattr(vae, "encode")


def uses_guidance(pipeline: Any) -> bool:
    """Whether `guidance_scale` weights two predictions; False for distilled models (LCM, Flux), which take it as input or ignore it."""
    config = getattr(denoiser(pipeline), "config", None) or {}
    distilled = config.get("guidance_embeds") is not None or config.get("time_cond_proj_dim") is not None
    return "guidance_scale" in call_parameters(pipeline) and not distilled


def predicts_negative_apart(pipeline: Any) -> bool:
    """Whether the negative prompt is predicted in a separate denoiser call (Flux), not in half of a batch."""
    return "true_cfg_scale" in call_parameters(pipeline)


def guidance_groups(pipeline: Any, encoder_calls: int) -> tuple[int, int]:
    """Number of predictions that a denoiser call stacks in its batch, and the index of the one for the prompt.

    Classifier-free guidance puts the negative prompt first, perturbed-attention guidance its own prediction last.
    Where the pipeline has no flag for guidance (PixArt), a second call of the text encoder means guidance.
    """
    if predicts_negative_apart(pipeline):
        return 1, 0
    guided = bool(getattr(pipeline, "do_classifier_free_guidance", encoder_calls > 1))
    perturbed = bool(getattr(pipeline, "do_perturbed_attention_guidance", False))
    return 1 + guided + perturbed, int(guided)


def takes(pipeline: Any, name: str) -> bool:
    """Whether calling the pipeline takes an argument of this name."""
    return name in call_parameters(pipeline)


def takes_step_callback(pipeline: Any) -> bool:
    """Whether the pipeline passes its latents to a callback after each step."""
    return "callback_on_step_end" in call_parameters(pipeline)


def family(pipeline: Any) -> str:
    """Name of the thresholds preset for the pipeline's capabilities: flow, sdxl, sd15 or ddpm, else default."""
    parts = {name for name in FAMILY_PARTS if getattr(pipeline, name, None) is not None}
    return family_of_parts(parts, pipeline.scheduler)


def image_size(pipeline: Any, settings: Settings) -> tuple[int, int]:
    """Height and width in pixels of the samples: the settings' values, else the pipeline's defaults."""
    own = getattr(getattr(denoiser(pipeline), "config", None), "sample_size", None)
    size = getattr(pipeline, "default_sample_size", None) or own or 64
    sides = (size, size) if isinstance(size, int) else tuple(size)
    scale = _vae_scale(pipeline) if has_vae(pipeline) else 1
    return settings.height or sides[0] * scale, settings.width or sides[1] * scale


def _vae_scale(pipeline: Any) -> int:
    """Pixels along a side per latent position: the pipeline's own value, else from the VAE's levels (DiT has no value)."""
    own = getattr(pipeline, "vae_scale_factor", None)
    levels = pipeline.vae.config.get("block_out_channels") or [0]
    return int(own) if own else 2 ** (len(levels) - 1)


FAMILY_PARTS = ("text_encoder", "text_encoder_2", "vae", "vqvae", "unet", "transformer")


def family_of_parts(parts: set[str], scheduler: Any) -> str:
    if is_flow(scheduler):
        return "flow"
    if has_own_sigma_range(scheduler):
        return "default"  # an EDM schedule, whatever the parts: the presets of VP schedules do not fit it
    if {"text_encoder", "vae", "unet"} <= parts:
        return "sdxl" if "text_encoder_2" in parts else "sd15"
    return "ddpm" if not {"text_encoder", "vae", "vqvae"} & parts else "default"


def first_tensor(pipeline: Any) -> torch.Tensor | None:
    """First parameter of the denoiser, or its first buffer where it has no parameters; None where it has neither."""
    part = denoiser(pipeline)
    return next(itertools.chain(part.parameters(), part.buffers()), None) if part is not None else None


def call_parameters(pipeline: Any) -> set[str]:
    return set(inspect.signature(type(pipeline).__call__).parameters)
