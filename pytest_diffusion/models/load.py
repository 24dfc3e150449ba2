"""Pipelines and schedulers by name: a folder, a file, a hub id or a callable; weights from safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pytest_diffusion.config.claims import local_rank
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.config.sources import ModelSource, model_source
from pytest_diffusion.data.hub import hub_failure
from pytest_diffusion.data.objects import load_object
from pytest_diffusion.models.capabilities import FAMILY_PARTS, denoiser, dtype_of, family_of_parts, modules
from pytest_diffusion.models.code import refuse_code
from pytest_diffusion.models.kernels import apply_protocol
from pytest_diffusion.models.lora import add_lora
from pytest_diffusion.models.memory import is_offloaded
from pytest_diffusion.models.parts import load_parts
from pytest_diffusion.models.schedulers import build_scheduler
from pytest_diffusion.verdicts.errors import ModelError, SettingsError, SetupError


def load_pipeline(settings: Settings, *, flag: str = "--diffusion-model") -> Any:
    """The pipeline that the settings name, with their adapter if they name one, in evaluation mode on its device.

    Weights are read from safetensors only and no remote code is run. Raises ModelError when it cannot be
    loaded, with the option `flag` that named it and the reason. What an adapter changes is the pipeline's `lora_change`.
    """
    if settings.model is None:
        raise SettingsError("No model is given: use --diffusion-model=NAME, or override the fixture diffusion_pipeline.")
    device = settings.device or default_device()
    source = model_source(settings.model)
    try:
        pipeline = source.loader()(settings.model, settings=settings)
    except ModelError as error:
        # A broken set-up stays one; an error that names its option says enough.
        raise error if str(error).startswith("--diffusion-") else type(error)(f"{flag}: {error}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise _unloadable(source, settings.model, error, f"{type(error).__name__}: {error}", flag=flag) from error
    if settings.lora is not None:
        pipeline.lora_change = add_lora(pipeline, settings.lora)
    if settings.scheduler is not None or settings.scheduler_config:
        pipeline.scheduler = build_scheduler(settings.scheduler, pipeline.scheduler, settings.scheduler_config)
    dtype = getattr(torch, settings.dtype) if settings.dtype else _own_dtype(source, settings.model, pipeline, device)
    offloaded = is_offloaded(modules(pipeline).values())
    if offloaded and settings.dtype and settings.dtype != dtype_of(pipeline):
        raise ModelError(f"--diffusion-dtype: the parts of {settings.model} are offloaded; load them as {settings.dtype}.")
    try:
        if hasattr(pipeline, "to") and not offloaded:
            pipeline.to(device)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelError(f"--diffusion-device: {settings.model} cannot be moved to {device}: {str(error).splitlines()[0]}") from error
    if source.is_checkpoint and getattr(pipeline, "safety_checker", None) is not None:
        # The checker replaces flagged images with black frames, also after false alarms. These are not the model's output.
        pipeline.register_modules(safety_checker=None)
    if source.is_checkpoint and getattr(pipeline, "watermark", None) is not None:
        # Stable Diffusion XL adds a watermark where its package is installed. Figures are measured on images without it.
        pipeline.watermark = None
    for part in modules(pipeline).values():
        part.eval()
        if dtype is not None and not offloaded and any(parameter.dtype != dtype for parameter in part.parameters()):
            part.to(dtype)
    apply_protocol(pipeline, settings)
    return pipeline


def load_scheduler(settings: Settings) -> Any | None:
    """The model's scheduler, read without loading the weights; None where only the loaded pipeline has it.

    Raises ModelError when its configuration cannot be loaded.
    """
    import diffusers

    source = _index_source(settings.model)
    if source is None:
        return None
    try:
        entry = _index_of(source).get("scheduler", [None, None])
        scheduler_class = getattr(diffusers, entry[1] or "", None)
        scheduler = scheduler_class.from_pretrained(source, subfolder="scheduler") if scheduler_class is not None else None
    except (OSError, ValueError, TypeError) as error:
        raise _unloadable(model_source(str(settings.model)), str(settings.model), error, str(error).splitlines()[0]) from error
    if scheduler is None or (settings.scheduler is None and not settings.scheduler_config):
        return scheduler
    return build_scheduler(settings.scheduler, scheduler, settings.scheduler_config)


def _unloadable(source: ModelSource, model: str, error: Exception, reason: str, *, flag: str = "--diffusion-model") -> ModelError:
    """The error for a model that cannot be loaded: the set-up's, where the hub did not give it."""
    failure = hub_failure(error) if source.is_hub_id else ""
    return (SetupError if failure else ModelError)(f"{flag}: {model} cannot be loaded: {failure or reason}")


def default_device() -> str:
    """cuda, else mps, else cpu; each process of a job that has several on this machine takes an accelerator of its own."""
    if torch.cuda.is_available():
        local, count = local_rank(), torch.cuda.device_count()
        return "cuda" if local is None or count == 1 else f"cuda:{local % count}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def family_of_index(model: str | None, scheduler: Any) -> str:
    """`family` of a diffusers folder or hub id, read from its index without loading any weights."""
    index = _index_of(str(_index_source(model)))
    parts = {name for name in FAMILY_PARTS if isinstance(index.get(name), list | tuple) and index[name][0]}
    return family_of_parts(parts, scheduler)


def load_folder(value: str, *, settings: Settings | None = None) -> Any:
    """The pipeline of a diffusers folder, or the demo's."""
    import diffusers

    folder = model_source(value).folder(value)
    if settings is not None and settings.trust_remote_code:
        return diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True, trust_remote_code=True)
    if folder is None:
        raise ModelError(f"{value} is not a folder of diffusers.")
    return _whole_pipeline(folder)


def load_hub_id(value: str, *, settings: Settings | None = None) -> Any:
    """The pipeline of a hub id, downloaded once by the hub's own client, and looked through for code before anything is loaded."""
    import diffusers

    if settings is not None and settings.trust_remote_code:
        return diffusers.DiffusionPipeline.from_pretrained(value, use_safetensors=True, trust_remote_code=True)
    folder = Path(diffusers.DiffusionPipeline.download(value, use_safetensors=True))
    refuse_code("--diffusion-model", folder)
    return _whole_pipeline(folder)


def _whole_pipeline(folder: Path) -> Any:
    """The pipeline of a folder, none of whose tensors is missing; what is stored and not used is its `load_report`."""
    import diffusers

    parts, report = load_parts(folder)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **parts)
    pipeline.load_report = report
    return pipeline


def load_callable(value: str, *, settings: Settings | None = None) -> Any:
    """The pipeline that `package.module:callable` returns or is. Raises ModelError for anything else."""
    import diffusers

    factory = load_object(value, "--diffusion-model")
    pipeline = factory() if callable(factory) and not isinstance(factory, diffusers.DiffusionPipeline) else factory
    if not callable(pipeline) or not hasattr(pipeline, "scheduler"):
        raise ModelError(f"{value} returned {type(pipeline).__name__}; expected a callable pipeline with a scheduler.")
    return pipeline


def _index_of(source: str) -> dict[str, Any]:
    """The model_index.json of a folder or hub id: `DiffusionPipeline.load_config`, without the seconds that loading all pipelines takes."""
    from diffusers.configuration_utils import ConfigMixin

    class Index(ConfigMixin):  # type: ignore[misc]
        config_name = "model_index.json"

    index: dict[str, Any] = Index.load_config(source)
    return index


def _index_source(model: str | None) -> str | None:
    """The folder or hub id whose model_index.json can be read, None for other kinds of model."""
    if model is None:
        return None
    source = model_source(model)
    folder = source.folder(model)
    return str(folder) if folder is not None else (model if source.is_hub_id else None)


def _own_dtype(source: ModelSource, model: str, pipeline: Any, device: str) -> torch.dtype | None:
    """One dtype for all parts of a loaded checkpoint: float32 on the CPU, else the one its denoiser is stored in.

    Loaders of diffusers and of transformers have different defaults, so parts could have two dtypes.
    None for a pipeline that the user built: its dtype is not changed.
    """
    if not source.is_checkpoint:
        return None
    if torch.device(device).type == "cpu":
        return torch.float32
    from safetensors import safe_open

    folder, part = source.folder(model), denoiser(pipeline)
    files = [path for name in ("unet", "transformer") for path in folder.glob(f"{name}/*.safetensors")] if folder is not None else []
    # Variants such as model.fp16.safetensors are skipped: they are not loaded.
    for file in sorted(path for path in files if path.stem.count(".") == 0):
        with safe_open(file, framework="pt") as opened:
            stored: torch.dtype = opened.get_tensor(next(iter(opened.keys()))).dtype
            return stored
    return next(part.parameters()).dtype if part is not None else None
