"""Thresholds files: TOML tables to Limits, remembering which file and table each came from."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_diffusion.config.extensions import CHECKS, extensions
from pytest_diffusion.config.margins import Margins, overlay
from pytest_diffusion.config.parsers import LENSES
from pytest_diffusion.config.resources import data_folder
from pytest_diffusion.config.tables import read_table
from pytest_diffusion.verdicts.errors import SettingsError, unknown_name
from pytest_diffusion.verdicts.verdict import Limits

_EXTRACTORS = ("inception", "pixels", "demo-judge", "clip:", "clip-score:", "dinov2:", "CLIP ")
"""How the names of extractors begin, as figures show them; those of a user's own have a colon."""
COMPARISONS = ("finetune", "quantised")
"""Presets of margins for a purpose, whatever the model."""
_GATE = {"inconclusive": ("fail", "warn"), "skipped": ("ok", "fail")}
_KEYS = {"at_least": float, "at_most": float, "min_samples": int, "min_reference": int, "extractor": str, "source": str}


@dataclass(frozen=True)
class Thresholds:
    """Limits by check, the settings a file asks for, and the rules of the gate."""

    limits: dict[str, Limits] = field(default_factory=dict)
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Value and file of each setting in a table `[settings]`."""
    inconclusive_fails: bool = True
    skipped_fail_by: str = ""
    """The file that says that a check with nothing to look at closes the gate; empty where none does."""
    require: dict[str, str] = field(default_factory=dict)
    """Checks and lenses of which something must be judged, with the file that says so."""
    files: tuple[str, ...] = ()
    margins: Margins = field(default_factory=Margins)
    """How far the figures of a candidate may lie from those of its baseline."""

    def for_check(self, check: str) -> Limits | None:
        """The limits of a check, or None where no file sets any."""
        return self.limits.get(check)


def lacks_family(names: Sequence[str]) -> bool:
    """Whether no file says what holds for the model itself: presets of a comparison lie on top of the model's own."""
    return set(names) <= set(COMPARISONS)


def preset_names() -> list[str]:
    """Names of the presets that are shipped."""
    return sorted(path.stem for path in data_folder("thresholds").glob("*.toml"))


def is_preset(shown: str) -> bool:
    """Whether a file, as `Thresholds.files` names it, is a preset of ours."""
    return shown in [f"thresholds/{name}.toml" for name in preset_names()]


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
    is_own = path.parent != data_folder("thresholds")
    settings, gate = tables.pop("settings", {}), _gate(shown, tables.pop("gate", {}))
    margins = overlay(below.margins, shown, tables.pop("paired", {}), is_own=is_own)
    if not isinstance(settings, dict):
        raise SettingsError(f"{shown}: settings is {settings!r}; expected a table [settings].")
    limits = dict(below.limits)
    for check, table in tables.items():
        if checks is not None and check not in checks and not _is_added(shown, check):
            raise SettingsError(f"{shown}: table " + unknown_name("name", check, checks))
        limits[check] = _limits(shown, check, table, limits.get(check), is_own=is_own)
    if "require" in gate:
        known = [*LENSES, "always", *limits]
        for name in gate["require"]:
            if name not in known and not _is_added(shown, name):
                raise SettingsError(f"{shown} [gate] require: " + unknown_name("the name", name, known))
    return Thresholds(
        limits,
        {**below.settings, **{name: (value, shown) for name, value in settings.items()}},
        gate["inconclusive"] == "fail" if "inconclusive" in gate else below.inconclusive_fails,
        (f"{shown} [gate]" if gate["skipped"] == "fail" else "") if "skipped" in gate else below.skipped_fail_by,
        # A preset's list takes the place of the one below; a user's file with its own list has the last word.
        dict.fromkeys(gate["require"], f"{shown} [gate]") if "require" in gate else below.require,
        (*below.files, shown),
        margins,
    )


def _gate(shown: str, table: Any) -> dict[str, Any]:
    """The table `[gate]`. Raises SettingsError for a key or value that it may not have."""
    if not isinstance(table, dict):
        raise SettingsError(f"{shown}: gate is {table!r}; expected a table [gate] with {', '.join([*_GATE, 'require'])}.")
    for key, value in table.items():
        if key == "require":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise SettingsError(f"{shown} [gate]: require is {value!r}; expected a list of checks and lenses.")
        elif key not in _GATE:
            raise SettingsError(f"{shown} [gate]: " + unknown_name("key", key, [*_GATE, "require"]))
        elif value not in _GATE[key]:
            raise SettingsError(f"{shown} [gate]: {key} is {value!r}; expected {' or '.join(map(repr, _GATE[key]))}.")
    return table


def _is_added(shown: str, check: str) -> bool:
    """Whether another package adds a check of this name. Raises SettingsError where it tried and failed."""
    added = extensions(CHECKS)
    if check in added.broken:
        raise SettingsError(f"{shown} [{check}]: the {added.broken[check]}.")
    return check in added.loaded


def _limits(shown: str, check: str, table: Any, below: Limits | None, *, is_own: bool) -> Limits:
    where = f"{shown} [{check}]"
    values = read_table(where, table, _KEYS)
    _check_extractor(where, values.get("extractor", ""))
    if below is not None and not {"at_least", "at_most"} & set(values):
        # A table that only changes sample counts keeps the limit, and the limit keeps its source.
        values = {"at_least": below.at_least, "at_most": below.at_most, "extractor": below.extractor, "source": below.source, **values}
    if below is not None:
        # Samples and references are asked for together: a file that asks for fewer samples means both.
        twin = min(below.min_reference, values.get("min_samples", below.min_reference))
        if twin < below.min_reference and "min_reference" not in values and values.get("source"):
            values["source"] += f" (min_reference lowered with min_samples, from {below.min_reference} to {twin})"
        values = {"min_samples": below.min_samples, "min_reference": twin, **values}
    if not values.get("source"):
        raise SettingsError(f'{where} has no source: say where the limit comes from, as in source = "Heusel et al. 2017".')
    try:
        return Limits(**values, where=where, origin="file" if is_own else "preset")
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from None


def _check_extractor(where: str, name: str) -> None:
    """Raise SettingsError for the name of an extractor that no figure can have: its limit would never be held."""
    if name and ":" not in name and not any(known.startswith(name) or name.startswith(known) for known in _EXTRACTORS):
        raise SettingsError(f"{where}: " + unknown_name("extractor", name, [known.strip(" :") for known in _EXTRACTORS]))
