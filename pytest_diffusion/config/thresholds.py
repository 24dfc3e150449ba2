"""Thresholds files: TOML tables to Limits, remembering which file and table each came from."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_diffusion.config.extensions import CHECKS, extensions
from pytest_diffusion.config.resources import data_folder
from pytest_diffusion.verdicts.errors import SettingsError, unknown_name
from pytest_diffusion.verdicts.verdict import Limits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KEYS = {"at_least": float, "at_most": float, "min_samples": int, "min_reference": int, "extractor": str, "source": str}


@dataclass(frozen=True)
class Thresholds:
    """Limits by check, the settings a file asks for, and whether `inconclusive` fails the gate."""

    limits: dict[str, Limits] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    inconclusive_fails: bool = True
    files: tuple[str, ...] = ()

    def for_check(self, check: str) -> Limits | None:
        """The limits of a check, or None where no file sets any."""
        return self.limits.get(check)


def preset_names() -> list[str]:
    """Names of the presets that are shipped."""
    return sorted(path.stem for path in data_folder("thresholds").glob("*.toml"))


def load_thresholds(names: Sequence[str]) -> Thresholds:
    """Thresholds from preset names or TOML files; later ones win, table by table.

    `default` lies under all of them and has a table for every check, so that a table it lacks is a
    misspelt one. Raises SettingsError for a name, file, table or key that does not exist or has the wrong type.
    """
    merged = Thresholds()
    for name in ("default", *(name for name in names if name != "default")):
        merged = _overlay(merged, _resolve(name), merged.limits or None)
    return merged


def _resolve(name: str) -> Path:
    if name in preset_names():
        return data_folder("thresholds") / f"{name}.toml"
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise SettingsError(f"--diffusion-thresholds: {name} does not exist; give a TOML file or one of: {', '.join(preset_names())}.")
    raise SettingsError(unknown_name("--diffusion-thresholds", name, preset_names()))


def _overlay(below: Thresholds, path: Path, checks: Collection[str] | None) -> Thresholds:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.") from None
    shown = f"thresholds/{path.name}" if path.parent == data_folder("thresholds") else str(path)
    settings, gate = tables.pop("settings", {}), tables.pop("gate", {})
    verdicts = {"fail": True, "warn": False}
    if set(gate) - {"inconclusive"} or gate.get("inconclusive", "fail") not in verdicts:
        raise SettingsError(f'{shown} [gate] may only say inconclusive = "fail" or "warn"; got {gate!r}.')
    limits = dict(below.limits)
    for check, table in tables.items():
        if checks is not None and check not in checks and not _is_added(shown, check):
            raise SettingsError(f"{shown}: table " + unknown_name("name", check, checks))
        limits[check] = _limits(shown, check, table, limits.get(check))
    fails = verdicts[gate["inconclusive"]] if gate else below.inconclusive_fails
    return Thresholds(limits, {**below.settings, **settings}, fails, (*below.files, shown))


def _is_added(shown: str, check: str) -> bool:
    """Whether another package adds a check of this name. Raises SettingsError where it tried and failed."""
    added = extensions(CHECKS)
    if check in added.broken:
        raise SettingsError(f"{shown} [{check}]: the {added.broken[check]}.")
    return check in added.loaded


def _limits(shown: str, check: str, table: Any, below: Limits | None) -> Limits:
    where = f"{shown} [{check}]"
    if not isinstance(table, dict):
        raise SettingsError(f"{where} is {table!r}; expected a table with {', '.join(_KEYS)}.")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _KEYS:
            raise SettingsError(f"{where}: " + unknown_name("key", key, _KEYS))
        if isinstance(value, bool) or not isinstance(value, (int, float) if _KEYS[key] is float else _KEYS[key]):
            raise SettingsError(f"{where}: {key} is {value!r}; expected {_KEYS[key].__name__}.")
        values[key] = _KEYS[key](value)
    if below is not None and not {"at_least", "at_most"} & set(values):
        # A table that only changes sample counts keeps the limit, and the limit keeps its source.
        values = {"at_least": below.at_least, "at_most": below.at_most, "extractor": below.extractor, "source": below.source, **values}
    if below is not None:
        values = {"min_samples": below.min_samples, "min_reference": below.min_reference, **values}
    if not values.get("source"):
        raise SettingsError(f'{where} has no source: say where the limit comes from, as in source = "Heusel et al. 2017".')
    return Limits(**values, where=where)
