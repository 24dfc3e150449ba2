"""What would stop a run after hours, looked at before it begins: disk, memory, steps, and what the extractor returns."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pytest_diffusion.config.cache import cache_root
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.references import Reference
from pytest_diffusion.features.identity import Features
from pytest_diffusion.models.capabilities import image_size
from pytest_diffusion.verdicts.errors import ModelError, SetupError

_FLOATS_OF_AN_IMAGE = 2
"""Copies of an image in float32 that the least a pipeline and a resize hold at the same time."""


def require_room(pipeline: Any, settings: Settings) -> None:
    """Raise SetupError where one image would not fit into memory, or the samples not on the disk of the cache folder.

    What is in the cache already is not counted against the disk.
    """
    import psutil

    height, width = image_size(pipeline, settings)
    shown = f"{width}x{height}"
    one, memory = _FLOATS_OF_AN_IMAGE * 12 * height * width, psutil.virtual_memory().available
    if one > memory:
        raise SetupError(f"One image of {shown} needs {_size(one)} of memory, where {_size(memory)} are free. Lower --diffusion-height.")
    folder = cache_root(settings.cache_dir)
    needed, free = 3 * height * width * settings.num_samples, shutil.disk_usage(_existing(folder)).free
    kept = sum(file.stat().st_blocks * 512 for file in folder.glob("samples/*/images.npy")) if needed > free else 0
    if needed > free + kept:
        raise SetupError(
            f"{settings.num_samples} samples of {shown} need {_size(needed)} in the cache folder {folder}, where {_size(free)} are free. "
            "Lower --diffusion-num-samples, or choose another folder with --diffusion-cache-dir."
        )


def require_steps(pipeline: Any, settings: Settings) -> None:
    """Raise SetupError where the pipeline's scheduler refuses more steps than it was trained on."""
    scheduler = getattr(pipeline, "scheduler", None)
    config = getattr(scheduler, "config", None)
    trained = config.get("num_train_timesteps") if isinstance(config, Mapping) else None
    if scheduler is None or trained is None or settings.steps <= trained:
        return
    try:
        copy.deepcopy(scheduler).set_timesteps(settings.steps)
    except ValueError as error:
        name = type(scheduler).__name__
        reason = str(error).splitlines()[0]
        raise SetupError(f"--diffusion-steps is {settings.steps}: {name}, trained on {trained} steps, refuses it: {reason}") from error


def require_features(extractor: Callable[[torch.Tensor], Any], pipeline: Any, settings: Settings) -> int:
    """Number of features of an image. Raises SetupError where those of two random images are not finite numbers."""
    height, width = image_size(pipeline, settings)
    images = torch.randint(256, (2, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    try:
        features = extractor(images)
    except (SetupError, ModelError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SetupError(f"--diffusion-features: {settings.features} fails on two images of {width}x{height}: {reason}") from error
    values = features.values if isinstance(features, Features) else torch.as_tensor(features)
    if values.ndim != 2 or len(values) != 2 or not bool(torch.isfinite(values).all()):
        shape = tuple(values.shape)
        raise SetupError(
            f"--diffusion-features: {settings.features} returns values of shape {shape} for two images; expected finite numbers (2, D)."
        )
    return values.shape[1]


def require_same_width(reference: Reference, width: int, settings: Settings) -> None:
    """Raise SetupError where the reference is statistics of another number of features."""
    if reference.statistics is not None and len(reference.statistics.mean) != width:
        raise SetupError(
            f"--diffusion-reference: {reference.name} holds statistics of {len(reference.statistics.mean)} features; "
            f"--diffusion-features={settings.features} has {width}."
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
