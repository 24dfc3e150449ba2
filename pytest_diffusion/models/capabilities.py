"""What a pipeline can do and where it runs, asked of the pipeline itself and not of its class's name."""

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
    """Where the pipeline's denoiser lies, or runs where it is offloaded."""
    if is_offloaded(modules(pipeline).values()):
        return torch.device(pipeline._execution_device)
    tensor = first_tensor(pipeline)
    return tensor.device if tensor is not None else torch.device("cpu")


def dtype_of(pipeline: Any) -> str:
    """The denoiser's dtype, as "float32"; empty where there is none."""
    tensor = first_tensor(pipeline)
    return str(tensor.dtype).removeprefix("torch.") if tensor is not None else ""


def modules(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The pipeline's neural parts by name."""
    components = getattr(pipeline, "components", None) or vars(pipeline)
    return {name: part for name, part in components.items() if isinstance(part, torch.nn.Module)}


def denoiser(pipeline: Any) -> torch.nn.Module | None:
    """The UNet or transformer, out of the shell of torch.compile; None where the pipeline has neither."""
    part = getattr(pipeline, "unet", None)
    part = part if part is not None else getattr(pipeline, "transformer", None)
    return getattr(part, "_orig_mod", part)


def uncompiled(pipeline: Any) -> AbstractContextManager[Any]:
    """A context in which a compiled denoiser runs as it was written, so that hooks on it are called."""
    parts = [module for part in modules(pipeline).values() for module in part.modules()]
    if any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None for part in parts):
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


def is_text_conditioned(pipeline: Any) -> bool:
    """Whether the pipeline takes a prompt and has an encoder for it."""
    return getattr(pipeline, "text_encoder", None) is not None and "prompt" in call_parameters(pipeline)


def has_vae(pipeline: Any) -> bool:
    """Whether images are decoded from latents by a VAE with an encoder."""
    vae = getattr(pipeline, "vae", None)
    return vae is not None and hasattr(vae, "encode")


def uses_guidance(pipeline: Any) -> bool:
    """Whether `guidance_scale` weighs two predictions, and is not an input of a distilled model (LCM, Flux) or ignored by it."""
    config = getattr(denoiser(pipeline), "config", None) or {}
    distilled = config.get("guidance_embeds") is not None or config.get("time_cond_proj_dim") is not None
    return "guidance_scale" in call_parameters(pipeline) and not distilled


def predicts_negative_apart(pipeline: Any) -> bool:
    """Whether the prediction for the negative prompt is a call of the denoiser of its own (Flux), not half of a batch."""
    return "true_cfg_scale" in call_parameters(pipeline)


def guidance_groups(pipeline: Any, encoder_calls: int) -> tuple[int, int]:
    """How many predictions a call of the denoiser stacks in its batch during a run, and which of them is for the prompt.

    Classifier-free guidance puts the negative prompt first, perturbed-attention guidance its own prediction last.
    Where the pipeline does not say whether it guides (PixArt), a second call of the text encoder tells it.
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
    """Whether the pipeline hands out its latents after each step."""
    return "callback_on_step_end" in call_parameters(pipeline)


def family(pipeline: Any) -> str:
    """The thresholds preset that fits: flow, sdxl, sd15 or ddpm by capabilities, else default."""
    parts = {name for name in FAMILY_PARTS if getattr(pipeline, name, None) is not None}
    return family_of_parts(parts, pipeline.scheduler)


def image_size(pipeline: Any, settings: Settings) -> tuple[int, int]:
    """Height and width in pixels of the samples: the settings', else the pipeline's own."""
    own = getattr(getattr(denoiser(pipeline), "config", None), "sample_size", None)
    size = getattr(pipeline, "default_sample_size", None) or own or 64
    sides = (size, size) if isinstance(size, int) else tuple(size)
    scale = _vae_scale(pipeline) if has_vae(pipeline) else 1
    return settings.height or sides[0] * scale, settings.width or sides[1] * scale


def _vae_scale(pipeline: Any) -> int:
    """Pixels a side for one latent: the pipeline's own figure, else from the VAE's levels (DiT has none)."""
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
    """A parameter of the denoiser, or a buffer where there is nothing to train."""
    part = denoiser(pipeline)
    return next(itertools.chain(part.parameters(), part.buffers()), None) if part is not None else None


def call_parameters(pipeline: Any) -> set[str]:
    return set(inspect.signature(type(pipeline).__call__).parameters)
