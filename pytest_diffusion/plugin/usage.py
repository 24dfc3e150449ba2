"""What is refused before anything is run: empty values, unknown names in the ini file, options that nothing would use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_diffusion.config.options import OPTIONS
from pytest_diffusion.config.settings import Settings, baseline_kind
from pytest_diffusion.plugin.stash import is_given
from pytest_diffusion.verdicts.errors import SettingsError, SetupError, unknown_name

_INI_PREFIX = "diffusion_"
_NAMES = [name for option in OPTIONS for name in option.ini_names]


def check_command_line(config: pytest.Config) -> None:
    """Raise SettingsError for an option or ini value that is empty, and for an ini name like ours that does not exist."""
    for option in OPTIONS:
        given = config.getoption(option.ini)
        for text in given if isinstance(given, list) else [given]:
            if text is not None and not text.strip():
                raise SettingsError(f"{option.flag} is empty. Is a variable of the shell not set? Leave the option out to use its default.")
    for name, value in _ini_values(config):
        if name not in _NAMES:
            raise SettingsError(unknown_name("The ini file's name", name, _NAMES))
        if not value.strip():
            raise SettingsError(f"ini {name} is empty. Leave the line out to use its default.")


def check_comparison(settings: Settings) -> None:
    """Raise SettingsError, before a model is loaded, for a baseline that is a report and cannot be read, and for an unknown column."""
    if settings.baseline is not None and baseline_kind(settings.baseline) == "report":
        from pytest_diffusion.report.earlier import measurements_of

        try:
            measurements_of(Path(settings.baseline))
        except SettingsError as error:
            raise SettingsError(f"--diffusion-baseline: {error}") from None
    columns = [name for name in settings.slices if name != "words"]
    if settings.baseline is not None and columns:
        from pytest_diffusion.data.columns import require_columns

        try:
            require_columns(columns, (settings.prompts, settings.reference, settings.retention))
        except SetupError as error:
            raise SettingsError(str(error)) from None


def _ini_values(config: pytest.Config) -> list[tuple[str, str]]:
    """Names that begin with ours, and their texts, from the ini file and from `-o`; not those that another plugin has declared."""
    # pytest 9 renames the attribute, with a warning for its old name, and wraps the values.
    table = config._inicfg if hasattr(config, "_inicfg") else config.inicfg
    found = [(str(name), getattr(value, "value", value)) for name, value in table.items()]
    found += [(name.strip(), value) for name, _, value in (str(text).partition("=") for text in config.getoption("override_ini") or [])]
    ours = []
    for name, value in found:
        if name.startswith(_INI_PREFIX) and (name in _NAMES or not _is_declared(config, name)):
            ours.append((name, " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)))
    return ours


def _is_declared(config: pytest.Config, name: str) -> bool:
    try:
        config.getini(name)
    except ValueError:
        return False
    return True


def unused_options(config: pytest.Config, items: Sequence[pytest.Item]) -> str:
    """Why options of ours would have no effect: there is no model, and no test uses a fixture, marker or helper; else empty."""
    given = [option.flag for option in OPTIONS if config.getoption(option.ini)]
    subjects = ("--diffusion-model", "--diffusion-scheduler")
    if not given or is_given(config, "model", "scheduler") or any(_uses_ours(item) for item in items):
        return ""
    shown = f"{given[0]} has" if len(given) == 1 else f"{', '.join(given)} have"
    return f"{shown} no effect: give {' or '.join(subjects)}, or a test that uses a fixture, a marker or a helper of pytest-diffusion."


def _uses_ours(item: pytest.Item) -> bool:
    if item.get_closest_marker("diffusion") is not None:
        return True
    if any(name.startswith(_INI_PREFIX) for name in getattr(item, "fixturenames", ())):
        return True
    module = getattr(item, "module", None)
    values = list(vars(module).values()) if module is not None else []
    return any(str(getattr(value, "__module__", None) or getattr(value, "__name__", "")).startswith("pytest_diffusion") for value in values)
