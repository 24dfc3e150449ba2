"""Code in a model's folder, found by reading its files and refused before a library could run it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_diffusion.config.cache import read_json
from pytest_diffusion.verdicts.errors import SettingsError

_LIBRARIES = ("diffusers", "transformers")
_REMEDY = "Nothing of it was run. If you trust its author, allow it with --diffusion-trust-remote-code."


def refuse_code(flag: str, folder: Path) -> None:
    """Raise SettingsError where loading a diffusers folder may run code that is not of diffusers or transformers.

    Refused are Python files anywhere in the folder, entries of model_index.json from other libraries, `auto_map` in any
    configuration, and class names that are not plain names.
    """
    for reason in _reasons(folder):
        raise SettingsError(f"{flag}: {reason} {_REMEDY}")


def _reasons(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        yield f"{path} is Python code, which a library may run."
    for name, entry in read_json(folder / "model_index.json").items():
        if not name.startswith("_") and isinstance(entry, list) and entry != [None, None] and not _is_known(entry):
            yield f"{folder / 'model_index.json'} takes the part {name!r} from {entry!r}; expected a class of diffusers or transformers."
    for path in sorted(folder.rglob("*.json")):
        config = read_json(path)
        if "_class_name" in config and not _is_name(config["_class_name"]):
            yield f"{path} has the _class_name {config['_class_name']!r}; expected a plain name."
        if _has_key(config, "auto_map"):
            yield f"{path} has an auto_map, by which transformers loads code."


def _is_known(entry: list[Any]) -> bool:
    """Whether an entry of the index is a class of diffusers, of one of its pipelines, or of transformers."""
    if len(entry) != 2 or not _is_name(entry[0]) or not _is_name(entry[1]):
        return len(entry) != 2 and not any(isinstance(item, str) and "." in item for item in entry)
    return entry[0] in _LIBRARIES or (_pipelines() / entry[0]).is_dir()


def _pipelines() -> Path:
    """Folder of the pipelines of diffusers, without importing it: checkpoints name some of their parts by it."""
    spec = importlib.util.find_spec("diffusers")
    return Path((spec.origin if spec is not None else None) or "").parent / "pipelines"


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier() and not value.startswith("_")


def _has_key(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_has_key(item, key) for item in value.values())
    return isinstance(value, list) and any(_has_key(item, key) for item in value)
