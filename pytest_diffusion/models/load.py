"""Pipelines by name: loading, what they can do, their fingerprint, and one call that makes images."""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.objects import load_object
from pytest_diffusion.models.memory import is_offloaded, whole_state_dict
from pytest_diffusion.models.schedulers import build_scheduler, has_own_sigma_range, is_flow
from pytest_diffusion.verdicts.errors import ModelError, SettingsError


def load_pipeline(settings: Settings) -> Any:
    """The pipeline that the settings name, in evaluation mode on its device.

    Weights are read from safetensors only and no remote code is run. Raises ModelError when it cannot be
    loaded, with the reason.
    """
    if settings.model is None:
        raise SettingsError("No model is given: use --diffusion-model=NAME, or override the fixture diffusion_pipeline.")
    device = settings.device or default_device()
    try:
        pipeline = _load_analytic(settings) if settings.model.startswith("analytic:") else _load(settings.model)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(f"--diffusion-model: {settings.model} cannot be loaded: {type(error).__name__}: {error}") from error
    if settings.scheduler is not None or settings.scheduler_config:
        pipeline.scheduler = build_scheduler(settings.scheduler, pipeline.scheduler, settings.scheduler_config)
    dtype = getattr(torch, settings.dtype) if settings.dtype else _own_dtype(settings.model, pipeline, device)
    offloaded = is_offloaded(modules(pipeline).values())
    if offloaded and settings.dtype and settings.dtype != dtype_of(pipeline):
        raise ModelError(f"--diffusion-dtype: the parts of {settings.model} are offloaded; load them as {settings.dtype}.")
    try:
        if hasattr(pipeline, "to") and not offloaded:
            pipeline.to(device)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelError(f"--diffusion-device: {settings.model} cannot be moved to {device}: {str(error).splitlines()[0]}") from error
    if ":" not in settings.model and getattr(pipeline, "safety_checker", None) is not None:
        # It paints a false alarm black, and a black frame is not what the model gave.
        pipeline.register_modules(safety_checker=None)
    if ":" not in settings.model and getattr(pipeline, "watermark", None) is not None:
        # Stable Diffusion XL marks its images where a package for it is installed: the figures are of what the model gave.
        pipeline.watermark = None
    for part in modules(pipeline).values():
        part.eval()
        if dtype is not None and not offloaded and any(parameter.dtype != dtype for parameter in part.parameters()):
            part.to(dtype)
    return pipeline


def load_scheduler(settings: Settings) -> Any | None:
    """The model's own scheduler without its weights; None where only the whole pipeline can tell.

    Raises ModelError when its configuration cannot be loaded.
    """
    import diffusers

    source = _index_source(settings.model)
    if source is None:
        return None
    try:
        entry = diffusers.DiffusionPipeline.load_config(source).get("scheduler", [None, None])
        scheduler_class = getattr(diffusers, entry[1] or "", None)
        scheduler = scheduler_class.from_pretrained(source, subfolder="scheduler") if scheduler_class is not None else None
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"--diffusion-model: {settings.model} cannot be loaded: {str(error).splitlines()[0]}") from error
    if scheduler is None or (settings.scheduler is None and not settings.scheduler_config):
        return scheduler
    return build_scheduler(settings.scheduler, scheduler, settings.scheduler_config)


def local_folder(model: str | None) -> Path | None:
    """The diffusers folder that a model's name stands for, if it lies on this machine."""
    if model == "demo":
        from pytest_diffusion.demo import weights_folder

        return weights_folder()
    path = Path(model or "")
    return path if model and (path / "model_index.json").is_file() else None


def default_device() -> str:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_of(pipeline: Any) -> torch.device:
    """Where the pipeline's denoiser lies, or runs where it is offloaded."""
    if is_offloaded(modules(pipeline).values()):
        return torch.device(pipeline._execution_device)
    tensor = _first_tensor(pipeline)
    return tensor.device if tensor is not None else torch.device("cpu")


def dtype_of(pipeline: Any) -> str:
    """The denoiser's dtype, as "float32"; empty where there is none."""
    tensor = _first_tensor(pipeline)
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
    return getattr(pipeline, "text_encoder", None) is not None and "prompt" in _parameters(pipeline)


def has_vae(pipeline: Any) -> bool:
    """Whether images are decoded from latents by a VAE with an encoder."""
    vae = getattr(pipeline, "vae", None)
    return vae is not None and hasattr(vae, "encode")


def uses_guidance(pipeline: Any) -> bool:
    """Whether `guidance_scale` weighs two predictions, and is not an input of a distilled model (LCM, Flux) or ignored by it."""
    config = getattr(denoiser(pipeline), "config", None) or {}
    distilled = config.get("guidance_embeds") is not None or config.get("time_cond_proj_dim") is not None
    return "guidance_scale" in _parameters(pipeline) and not distilled


def predicts_negative_apart(pipeline: Any) -> bool:
    """Whether the prediction for the negative prompt is a call of the denoiser of its own (Flux), not half of a batch."""
    return "true_cfg_scale" in _parameters(pipeline)


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
    return name in _parameters(pipeline)


def takes_step_callback(pipeline: Any) -> bool:
    """Whether the pipeline hands out its latents after each step."""
    return "callback_on_step_end" in _parameters(pipeline)


def family(pipeline: Any) -> str:
    """The thresholds preset that fits: flow, sdxl, sd15 or ddpm by capabilities, else default."""
    parts = {name for name in _FAMILY_PARTS if getattr(pipeline, name, None) is not None}
    return _family(parts, pipeline.scheduler)


def family_of_index(model: str | None, scheduler: Any) -> str:
    """`family` of a diffusers folder or hub id, read from its index without loading any weights."""
    import diffusers

    index = diffusers.DiffusionPipeline.load_config(_index_source(model))
    parts = {name for name in _FAMILY_PARTS if isinstance(index.get(name), list | tuple) and index[name][0]}
    return _family(parts, scheduler)


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


def fingerprint(pipeline: Any) -> str:
    """Hash of the weights, configurations and vocabularies of all parts, scheduler apart: 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(type(pipeline).__name__.encode())
    for name, part in sorted(modules(pipeline).items()):
        config = getattr(part, "config", None)
        digest.update(f"{name}:{config_text(config)}".encode())
        for key, tensor in sorted(whole_state_dict(part).items()):
            digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    settings = {key: value for key, value in dict(getattr(pipeline, "config", {})).items() if isinstance(value, str | int | float | bool)}
    digest.update(config_text(settings).encode())
    for name, part in sorted((getattr(pipeline, "components", None) or {}).items()):
        if hasattr(part, "get_vocab"):
            digest.update(f"{name}:{part.model_max_length}:{sorted(part.get_vocab().items())}".encode())
    return digest.hexdigest()


def config_text(config: Any) -> str:
    """A configuration as stable text, without paths and versions that do not change a sample."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    kept = {key: values[key] for key in sorted(values) if not key.startswith("_") and key not in ("transformers_version", "name_or_path")}
    return repr(kept)


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
    parameters = _parameters(pipeline)
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
    """What a pipeline returned as floats in [0, 1], (N, H, W, C). Raises ModelError where that would be a guess."""
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


_FAMILY_PARTS = ("text_encoder", "text_encoder_2", "vae", "vqvae", "unet", "transformer")


def _index_source(model: str | None) -> str | None:
    """The folder or hub id whose model_index.json can be read, None for other kinds of model."""
    folder = local_folder(model)
    if folder is not None:
        return str(folder)
    return model if model is not None and ":" not in model and model.count("/") == 1 and not model.endswith(".safetensors") else None


def _family(parts: set[str], scheduler: Any) -> str:
    if is_flow(scheduler):
        return "flow"
    if has_own_sigma_range(scheduler):
        return "default"  # an EDM schedule, whatever the parts: the presets of VP schedules do not fit it
    if {"text_encoder", "vae", "unet"} <= parts:
        return "sdxl" if "text_encoder_2" in parts else "sd15"
    return "ddpm" if not {"text_encoder", "vae", "vqvae"} & parts else "default"


def _load_analytic(settings: Settings) -> Any:
    from pytest_diffusion.analytic.pipeline import load_analytic

    return load_analytic(settings)


def _load(model: str) -> Any:
    import diffusers

    folder = local_folder(model)
    path = Path(model)
    if folder is not None:
        return diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    if path.suffix == ".safetensors":
        return _load_single_file(path)
    if ":" in model and not path.exists():
        factory = load_object(model, "--diffusion-model")
        pipeline = factory() if callable(factory) and not isinstance(factory, diffusers.DiffusionPipeline) else factory
        if not callable(pipeline) or not hasattr(pipeline, "scheduler"):
            raise ModelError(f"{model} returned {type(pipeline).__name__}; expected a callable pipeline with a scheduler.")
        return pipeline
    return diffusers.DiffusionPipeline.from_pretrained(model, use_safetensors=True)


def _own_dtype(model: str, pipeline: Any, device: str) -> torch.dtype | None:
    """One dtype for all parts of a loaded checkpoint: float32 on the CPU, else the one its denoiser is stored in.

    Loaders of diffusers and of transformers differ in their default, so that parts could meet in two dtypes.
    A pipeline that the user built is left as it is (None).
    """
    if ":" in model and local_folder(model) is None:
        return None
    if torch.device(device).type == "cpu":
        return torch.float32
    from safetensors import safe_open

    folder, part = local_folder(model), denoiser(pipeline)
    files = [path for name in ("unet", "transformer") for path in folder.glob(f"{name}/*.safetensors")] if folder is not None else []
    # A variant such as model.fp16.safetensors lies beside the file that is loaded.
    for file in sorted(path for path in files if path.stem.count(".") == 0):
        with safe_open(file, framework="pt") as opened:
            stored: torch.dtype = opened.get_tensor(next(iter(opened.keys()))).dtype
            return stored
    return next(part.parameters()).dtype if part is not None else None


def _load_single_file(path: Path) -> Any:
    """A pipeline from one checkpoint; a folder `<name>.config` beside it serves machines without the hub."""
    import diffusers
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint

    kind = infer_diffusers_model_type(load_single_file_checkpoint(str(path)))
    classes = {
        "xl": "StableDiffusionXLPipeline",
        "sd3": "StableDiffusion3Pipeline",
        "sd35": "StableDiffusion3Pipeline",
        "flux": "FluxPipeline",
    }
    name = next((value for prefix, value in classes.items() if kind.startswith(prefix)), "StableDiffusionPipeline")
    config = path.with_suffix(".config")
    local = {"config": str(config), "local_files_only": True} if config.is_dir() else {}
    return getattr(diffusers, name).from_single_file(str(path), **local)


def _first_tensor(pipeline: Any) -> torch.Tensor | None:
    """A parameter of the denoiser, or a buffer where there is nothing to train."""
    part = denoiser(pipeline)
    return next(itertools.chain(part.parameters(), part.buffers()), None) if part is not None else None


def _parameters(pipeline: Any) -> set[str]:
    return set(inspect.signature(type(pipeline).__call__).parameters)


def _takes_any(pipeline: Any) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(type(pipeline).__call__).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds
