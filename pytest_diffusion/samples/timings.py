"""What an image costs on this machine, as the last run measured it; read before the model is loaded."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from pytest_diffusion.config.cache import cache_root, checksum, read_json, write_text
from pytest_diffusion.config.durations import duration
from pytest_diffusion.config.remote import is_url
from pytest_diffusion.config.settings import Settings

_LONG, _WIDE = 3600.0, 50e9
"""Seconds and bytes beyond which a run is called long."""
_TIMINGS = "timings.json"
_KEPT = 200
"""Timings that are kept; the oldest go first."""


@dataclass(frozen=True)
class Timing:
    """What one image of a model costs on a machine."""

    seconds: float
    height: int
    width: int
    source: str
    """Where it is from: "measured over 8 images", "by the run of 2026-11-26"."""
    memory: int | None = None
    """Most bytes that were in use, on the accelerator where there is one."""


def known_timing(settings: Settings) -> Timing | None:
    """What the last run on this machine with this model and these settings of sampling measured."""
    found = read_json(_file(settings)).get(_key(settings))
    if not isinstance(found, dict):
        return None
    try:
        return Timing(float(found["seconds"]), int(found["height"]), int(found["width"]), f"by the run of {found['day']}")
    except (TypeError, KeyError, ValueError):
        return None


def remember_timing(settings: Settings, seconds: float, size: tuple[int, int]) -> None:
    """Keep the seconds of one image of this height and width; a cache that may not be written keeps nothing."""
    path = _file(settings)
    own = {"seconds": round(seconds, 6), "height": size[0], "width": size[1], "day": time.strftime("%Y-%m-%d")}
    kept = {**{key: value for key, value in read_json(path).items() if key != _key(settings)}, _key(settings): own}
    try:
        write_text(path, json.dumps(dict(list(kept.items())[-_KEPT:]), indent=1))
    except OSError:
        pass


def cost_text(settings: Settings, count: int, timing: Timing | None) -> str:
    """One line: images, steps, disk and, where the time of an image is known, the time of all."""
    height, width = (timing.height, timing.width) if timing is not None else (settings.height or 0, settings.width or 0)
    disk = 3 * height * width * count
    parts = [f"{count} images of {settings.steps} steps"]
    if disk:
        parts.append(f"{disk / 1e6:,.1f} MB")
    if timing is not None:
        parts.append(f"about {duration(timing.seconds * count)} {timing.source}")
    is_long = timing is not None and timing.seconds * count > _LONG
    return f"{'LONG RUN: ' if is_long or disk > _WIDE else ''}{', '.join(parts)}"


def _file(settings: Settings) -> Path:
    """Timings belong to the machine, also where the cache lies elsewhere."""
    own = settings.cache_dir is not None and not is_url(settings.cache_dir)
    return cache_root(settings.cache_dir if own else None) / _TIMINGS


def _key(settings: Settings) -> str:
    """What decides the time of an image, and this machine."""
    model = ("model", "lora", "scheduler", "dtype", "device", "compile", "memory_format")
    names = (*model, "steps", "guidance_scale", "height", "width", "batch_size")
    return checksum(json.dumps([socket.gethostname(), *(getattr(settings, name) for name in names)]), size=8)
