"""Stash keys, and the settings of a session resolved once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_diffusion.config.options import OPTIONS, Option

if TYPE_CHECKING:
    from pytest_diffusion.config.settings import Settings
    from pytest_diffusion.config.thresholds import Thresholds
    from pytest_diffusion.report.write import ReportFiles
    from pytest_diffusion.verdicts.verdict import Verdict

GENERATION = "diffusion-generation"
"""Name of the plugin that makes samples in place of running tests."""
SETTINGS: pytest.StashKey[tuple[Settings, Thresholds]] = pytest.StashKey()
RUN = pytest.StashKey[dict[str, Any]]()
VERDICTS: pytest.StashKey[list[Verdict]] = pytest.StashKey()
NUMBERS = pytest.StashKey[list[dict[str, Any]]]()
SAID = pytest.StashKey[dict[str, str]]()
"""Reasons why checks could not be measured, and the first check that gave each."""
CHOSEN = pytest.StashKey[list[str]]()
"""Checks that were named on the command line by their ids."""
NODES = pytest.StashKey[dict[str, pytest.Collector]]()
"""Folders and files that were collected, by their ids."""
VIEW = pytest.StashKey[tuple[str, ...]]()
"""The overrides that the last test with fixtures of ours saw."""
THREADS = pytest.StashKey[int]()
"""Threads of torch before they were divided among workers."""
REPORT_FILES: pytest.StashKey[ReportFiles] = pytest.StashKey()
FIGURES = pytest.StashKey[list[dict[str, Any]]]()


def active_settings(config: pytest.Config) -> tuple[Settings, Thresholds]:
    """Settings and thresholds of the session. Raises SettingsError for wrong values."""
    if SETTINGS not in config.stash:
        from pytest_diffusion.config.settings import resolve

        options = {option.name: config.getoption(option.ini) for option in OPTIONS}
        ini = {option.name: ini_value(config, option.name) for option in OPTIONS}
        config.stash[SETTINGS] = resolve(options=options, ini=ini)
    return config.stash[SETTINGS]


def ini_value(config: pytest.Config, name: str) -> str | list[str] | None:
    """The text of a setting in the ini file, or None. Relative paths in it are relative to the file, wherever pytest is started."""
    option = next(option for option in OPTIONS if option.name == name)
    found: str | list[str] | None = next(filter(None, map(config.getini, option.ini_names)), None)
    if not found or not option.is_path or config.inipath is None:
        return found
    base = config.inipath.parent
    texts = [str(base / text) if _is_below(base, text, option) else text for text in ([found] if isinstance(found, str) else found)]
    return texts[0] if isinstance(found, str) else texts


def _is_below(base: Path, text: str, option: Option) -> bool:
    """Whether a text is a path below a folder: one that will be written, or one that is there and no name of ours."""
    if Path(text).is_absolute() or text.startswith("~") or "://" in text:
        return False
    return option.name in ("report", "cache_dir") or (("/" in text or "." in text) and (base / text).exists())


def is_given(config: pytest.Config, *names: str) -> bool:
    """Whether any of these settings (any at all without names) is given by an option or in the ini file."""
    if "model" in names and is_given(config, "baseline") and is_given(config, "lora"):
        return True  # the baseline with the adapter is the model
    chosen = [option for option in OPTIONS if not names or option.name in names]
    return any(config.getoption(option.ini) or any(map(config.getini, option.ini_names)) for option in chosen)
