"""The seed of each sample: sample i has the settings' seed plus i."""

from __future__ import annotations

from pytest_diffusion.config.settings import Settings


def seed_of(settings: Settings, index: int) -> int:
    """The seed of sample number `index`."""
    return settings.seed + index


def seeds_of(settings: Settings, count: int, *, first: int = 0) -> list[int]:
    """Seeds of `count` samples from number `first` on."""
    return [seed_of(settings, first + index) for index in range(count)]
