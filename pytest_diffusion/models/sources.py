"""Names of models and schedulers: how each is recognised, and what is checked before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from pytest_diffusion.config.sources import ModelSource, Source, check_callable
from pytest_diffusion.demo import weights_folder
from pytest_diffusion.verdicts.errors import SettingsError, unknown_name

_PICKLED = (".ckpt", ".bin", ".pt", ".pth")


def scheduler_classes() -> list[str]:
    """Scheduler classes of the installed diffusers, read from its files: importing it would import torch."""
    spec = importlib.util.find_spec("diffusers")
    folder = Path((spec.origin if spec is not None else None) or "").parent / "schedulers"
    files = [path.read_text(encoding="utf-8") for path in folder.glob("scheduling_*.py")]
    return sorted(set(re.findall(r"^class (\w+Scheduler)\(", "\n".join(files), flags=re.MULTILINE)))


def _is_file_name(value: str) -> bool:
    path = Path(value)
    return path.suffix in (".safetensors", *_PICKLED) or path.is_file()


def _check_file(flag: str, value: str) -> None:
    path = Path(value)
    if path.suffix != ".safetensors":
        raise SettingsError(
            f"{flag}: {value} is not a .safetensors file; pickled checkpoints can run code and are refused: convert it first."
        )
    if not path.is_file():
        raise SettingsError(f"{flag}: the file {value} does not exist.")


def _is_folder_name(value: str) -> bool:
    """Whether it is an existing folder, or a path that no other source accepts."""
    path = Path(value)
    return path.is_dir() or (":" not in value and (path.is_absolute() or value.startswith((".", "~")) or len(path.parts) > 2))


def _check_folder(flag: str, value: str) -> None:
    """Raises SettingsError unless it is a diffusers folder whose configurations are JSON objects."""
    folder = Path(value)
    if not folder.is_dir():
        raise SettingsError(f"{flag}: the folder {value} does not exist.")
    index = folder / "model_index.json"
    if not index.is_file():
        raise SettingsError(
            f"{flag}: {folder} has no model_index.json, so it is not a diffusers pipeline folder (save it with pipeline.save_pretrained)."
        )
    parts = [
        name
        for name, entry in _read_json(flag, index).items()
        if not name.startswith("_") and isinstance(entry, list) and len(entry) == 2 and entry[0]
    ]
    for name in parts:
        if not (folder / name).is_dir():
            raise SettingsError(f"{flag}: {index} names the part {name!r}, but {folder / name} does not exist.")
        for config in ("config.json", "scheduler_config.json"):
            if (folder / name / config).is_file():
                _read_json(flag, folder / name / config)


def _refuse_code(flag: str, value: str) -> None:
    # Imported here, so that the register of sources stays light.
    from pytest_diffusion.models.code import refuse_code

    refuse_code(flag, Path(value))


def _read_json(flag: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{flag}: {path} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise SettingsError(f"{flag}: {path} holds {type(value).__name__}; expected a JSON object.")
    return value


def _folder_of(value: str) -> Path | None:
    path = Path(value)
    return path if (path / "model_index.json").is_file() else None


def _check_hub_id(flag: str, value: str) -> None:
    if len(Path(value).parts) != 2:
        raise SettingsError(
            f"{flag} is {value!r}; expected 'demo', analytic:NAME, a diffusers folder, a .safetensors file, "
            "package.module:callable, or a hub id as in owner/name."
        )


def _check_scheduler(flag: str, value: str) -> None:
    if value not in (known := scheduler_classes()):
        raise SettingsError(unknown_name(flag, value, known))


SOURCES = (
    ModelSource(
        "model",
        "demo",
        "pytest_diffusion.models.load:load_folder",
        lambda value: value == "demo",
        folder=lambda value: weights_folder(),
        is_checkpoint=True,
        preset="demo",
        cost="included in the package",
    ),
    ModelSource(
        "model",
        "a .safetensors file",
        "pytest_diffusion.models.single_file:load_single_file",
        _is_file_name,
        _check_file,
        "single file",
        is_checkpoint=True,
        cost="configurations come from NAME.config beside it, else from the baseline, else from the hub",
    ),
    ModelSource(
        "model",
        "a diffusers folder",
        "pytest_diffusion.models.load:load_folder",
        _is_folder_name,
        _check_folder,
        "folder",
        check_code=_refuse_code,
        folder=_folder_of,
        is_checkpoint=True,
    ),
    ModelSource(
        "model",
        "package.module:callable",
        "pytest_diffusion.models.load:load_callable",
        lambda value: ":" in value and not value.startswith("analytic:"),
        check_callable,
        "callable",
        is_own_code=True,
        cost="imports and runs your code",
    ),
    ModelSource(
        "model",
        "a hub id (owner/name)",
        "pytest_diffusion.models.load:load_hub_id",
        lambda value: ":" not in value,
        _check_hub_id,
        "hub",
        is_checkpoint=True,
        is_hub_id=True,
        cost="downloads from the hub",
    ),
    Source(
        "scheduler",
        "package.module:Class",
        "pytest_diffusion.models.schedulers:load_own_class",
        lambda value: ":" in value,
        check_callable,
        "callable",
        cost="imports your code",
    ),
    Source("scheduler", "a class of diffusers", "pytest_diffusion.models.schedulers:load_class", lambda value: True, _check_scheduler),
)
