"""Stash keys, and the settings of a session resolved once."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_diffusion.config.settings import OPTIONS, Settings, resolve
from pytest_diffusion.config.thresholds import Thresholds

SETTINGS = pytest.StashKey[tuple[Settings, Thresholds]]()
RUN = pytest.StashKey[dict[str, Any]]()
VERDICTS = pytest.StashKey[list[dict[str, Any]]]()
NUMBERS = pytest.StashKey[list[dict[str, Any]]]()
NOTES = pytest.StashKey[list[dict[str, Any]]]()


def active_settings(config: pytest.Config) -> tuple[Settings, Thresholds]:
    """Settings and thresholds of the session. Raises SettingsError for wrong values."""
    if SETTINGS not in config.stash:
        options = {option.name: config.getoption(f"diffusion_{option.name}") for option in OPTIONS}
        ini = {option.name: config.getini(option.ini) for option in OPTIONS}
        config.stash[SETTINGS] = resolve(options=options, ini=ini)
    return config.stash[SETTINGS]
