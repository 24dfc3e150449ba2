"""What the values of options name, looked at without importing it: models, references, prompts, extractors and schedulers."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_diffusion.verdicts.errors import SettingsError, unknown_name


def check_model(flag: str, model: str) -> None:
    """Raise SettingsError unless a model can have this name: what lies on this machine must exist."""
    path = Path(model)
    if model == "demo":
        return
    if model.startswith("analytic:"):
        if not model.partition(":")[2]:
            raise SettingsError(f"{flag} is {model!r}; expected analytic:NAME, as in analytic:wiener.")
        return
    if path.suffix in (".safetensors", ".ckpt", ".bin", ".pt", ".pth") or path.is_file():
        if path.suffix != ".safetensors":
            raise SettingsError(
                f"{flag}: {model} is not a .safetensors file; pickled checkpoints can run code and are refused: convert it first."
            )
        if not path.is_file():
            raise SettingsError(f"{flag}: the file {model} does not exist.")
        return
    if path.is_dir():
        _check_model_folder(flag, path)
        return
    if ":" in model:
        check_callable(flag, model)
        return
    if path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2:
        raise SettingsError(f"{flag}: the folder {model} does not exist.")
    if len(path.parts) != 2:
        raise SettingsError(
            f"{flag} is {model!r}; expected 'demo', analytic:NAME, a diffusers folder, a .safetensors file, "
            "package.module:callable, or a hub id as in owner/name."
        )


def _check_model_folder(flag: str, folder: Path) -> None:
    """A diffusers folder whose configurations are JSON objects."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise SettingsError(
            f"{flag}: {folder} has no model_index.json, so it is not a diffusers pipeline folder (save it with pipeline.save_pretrained)."
        )
    parts = [name for name, value in _read_json(flag, index).items() if isinstance(value, list) and len(value) == 2 and value[0]]
    for name in parts:
        if not (folder / name).is_dir():
            raise SettingsError(f"{flag}: {index} names the part {name!r}, but {folder / name} does not exist.")
        for config in ("config.json", "scheduler_config.json"):
            if (folder / name / config).is_file():
                _read_json(flag, folder / name / config)


def _read_json(flag: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{flag}: {path} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise SettingsError(f"{flag}: {path} holds {type(value).__name__}; expected a JSON object.")
    return value


def _check_reference(flag: str, value: str) -> None:
    path = Path(value)
    if value.startswith("hf:"):
        if importlib.util.find_spec("datasets") is None:
            raise SettingsError(f"{flag}: {value} needs the package datasets: pip install datasets.")
    elif path.is_dir():
        return
    elif path.suffix in (".npz", ".jsonl", ".csv"):
        if not path.is_file():
            raise SettingsError(f"{flag}: the file {value} does not exist.")
    elif ":" in value and not path.exists():
        check_callable(flag, value)
    else:
        raise SettingsError(
            f"{flag}: {value} does not exist; expected 'demo', an image folder, an .npz file, a .jsonl or .csv of pairs, "
            "hf:name[split] or package.module:callable."
        )


def _check_prompts(flag: str, value: str) -> None:
    path = Path(value)
    if not path.is_file():
        raise SettingsError(f"{flag}: the file {value} does not exist.")
    if path.suffix not in (".txt", ".jsonl", ".csv", ""):
        raise SettingsError(f"{flag}: {value} ends in {path.suffix}; expected .txt, .jsonl or .csv.")
    try:
        empty = not path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{flag}: {value} is not UTF-8 text: {error}.") from None
    if empty:
        raise SettingsError(f"{flag}: {value} is empty.")


def _check_features(flag: str, value: str) -> None:
    kind, found, name = value.partition(":")
    if kind in ("clip", "dinov2") and found:
        if not name:
            raise SettingsError(f"{flag} is {value!r}; expected {kind}:PATH_OR_ID.")
    elif kind == "inception" and found:
        if not Path(name).is_file():
            raise SettingsError(f"{flag}: the file {name!r} does not exist; expected inception:WEIGHTS_FILE.")
    elif found:
        check_callable(flag, value)
    elif value != "inception":
        raise SettingsError(
            unknown_name(
                flag,
                value,
                (
                    "inception",
                    "inception:WEIGHTS_FILE",
                    "pixels",
                    "demo",
                    "clip:PATH_OR_ID",
                    "dinov2:PATH_OR_ID",
                    "package.module:callable",
                ),
            )
        )


def _check_clip(flag: str, value: str) -> None:
    path = Path(value)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SettingsError(f"{flag}: {value} has no config.json, so it is not a transformers model folder.")
    elif path.is_absolute() or value.startswith((".", "~")) or len(path.parts) > 2:
        raise SettingsError(f"{flag}: the folder {value} does not exist.")


def check_callable(flag: str, value: str) -> None:
    """Raise SettingsError unless a value has the form package.module:name and its top package is there."""
    module, _, attribute = value.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise SettingsError(f"{flag} is {value!r}; expected package.module:name.")
    # Only the top package is looked for: finding a submodule would import its parents.
    top = module.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        raise SettingsError(f"{flag}: no module named {top!r} (from {value!r}); is its folder on the path (pytest's pythonpath ini)?")


CHECKS: dict[str, Callable[[str, str], None]] = {
    "reference": _check_reference,
    "prompts": _check_prompts,
    "features": _check_features,
    "clip_model": _check_clip,
}


def scheduler_classes() -> list[str]:
    """Scheduler classes of the installed diffusers, read from its files: importing it would import torch."""
    spec = importlib.util.find_spec("diffusers")
    folder = Path((spec.origin if spec is not None else None) or "").parent / "schedulers"
    files = [path.read_text(encoding="utf-8") for path in folder.glob("scheduling_*.py")]
    return sorted(set(re.findall(r"^class (\w+Scheduler)\(", "\n".join(files), flags=re.MULTILINE)))
