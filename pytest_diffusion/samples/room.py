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
"""A pipeline and a resize hold at least so many copies of an image, in float32, at the same time."""


def require_room(pipeline: Any, settings: Settings) -> None:
    """Raise SetupError where one image would not fit into memory, or all samples not on the whole disk of the cache folder.

    How much of the disk is free counts when it is known which samples are missing: `require_disk`.
    """
    import psutil

    height, width = image_size(pipeline, settings)
    shown = f"{width}x{height}"
    one, memory = _FLOATS_OF_AN_IMAGE * 12 * height * width, psutil.virtual_memory().available
    if one > memory:
        raise SetupError(
            f"One image of {shown} needs {_size(one)} of memory, where {_size(memory)} are free. "
            "Lower --diffusion-height and --diffusion-width."
        )
    folder = cache_root(settings.cache_dir)
    _require(settings.num_samples, (height, width), folder, shutil.disk_usage(_existing(folder)).total, "is all that its disk holds")


def require_disk(missing: int, size: tuple[int, int], folder: Path) -> None:
    """Raise SetupError where the missing samples of this height and width do not fit into what is free on the folder's disk."""
    _require(missing, size, folder, shutil.disk_usage(_existing(folder)).free, "are free")


def _require(count: int, size: tuple[int, int], folder: Path, room: int, what: str) -> None:
    needed = 3 * size[0] * size[1] * count
    if needed > room:
        raise SetupError(
            f"{count} samples of {size[1]}x{size[0]} need {_size(needed)} in the cache folder {folder}, where {_size(room)} {what}. "
            "Lower --diffusion-num-samples, or choose another folder with --diffusion-cache-dir."
        )


def require_steps(pipeline: Any, settings: Settings) -> None:
    """Raise SetupError where the pipeline's scheduler refuses more steps than it was trained on."""
    scheduler = getattr(pipeline, "scheduler", None)
    config = getattr(scheduler, "config", None)
    trained = config.get("num_train_timesteps") if isinstance(config, Mapping) else None
    if scheduler is None or not trained or settings.steps <= trained:
        return
    refused = _refusal(scheduler, settings.steps)
    # One that wants more than a number, as Flux's wants mu, refuses every number, and its pipeline knows better.
    if refused and not _refusal(scheduler, trained):
        name = type(scheduler).__name__
        raise SetupError(
            f"--diffusion-steps is {settings.steps}: {name}, trained on {trained} steps, refuses it: {refused} Give at most {trained}."
        )


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
            f"--diffusion-features={settings.features} has {width}. Give statistics that were made with this extractor, or images."
        )


def _refusal(scheduler: Any, steps: int) -> str:
    """Why a scheduler does not plan this many steps; empty where it does."""
    try:
        copy.deepcopy(scheduler).set_timesteps(steps)
    except Exception as error:  # code of the user's may raise anything
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
