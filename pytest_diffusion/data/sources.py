"""Names of references and prompts: how each is recognised, and what is checked before anything is read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pytest_diffusion.config.sources import PromptSource, ReferenceSource, Source, check_callable
from pytest_diffusion.verdicts.errors import SettingsError


def _check_hub(flag: str, value: str) -> None:
    if importlib.util.find_spec("datasets") is None:
        raise SettingsError(f"{flag}: {value} needs the package datasets: pip install datasets.")


def _check_file(flag: str, value: str) -> None:
    if not Path(value).is_file():
        raise SettingsError(f"{flag}: the file {value} does not exist.")


def _check_anything(flag: str, value: str) -> None:
    if ":" in value and not Path(value).exists():
        check_callable(flag, value)
    else:
        raise SettingsError(
            f"{flag}: {value} does not exist; expected 'demo', an image folder, an .npz file, a .jsonl or .csv of pairs, "
            "hf:name[split] or package.module:callable."
        )


def _check_prompts(flag: str, value: str) -> None:
    path = Path(value)
    _check_file(flag, value)
    if path.suffix not in (".txt", ".jsonl", ".csv", ""):
        raise SettingsError(f"{flag}: {value} ends in {path.suffix}; expected .txt, .jsonl or .csv.")
    try:
        empty = not path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{flag}: {value} is not UTF-8 text: {error}.") from None
    if empty:
        raise SettingsError(f"{flag}: {value} is empty.")


_LOADERS = "pytest_diffusion.data.references"
SOURCES = (
    ReferenceSource(
        "reference", "demo", f"{_LOADERS}:load_demo", lambda value: value == "demo", cost="rendered, as many images as samples", images=1000
    ),
    ReferenceSource("reference", "digits", f"{_LOADERS}:load_digits", lambda value: value == "digits", cost="included in scikit-learn"),
    ReferenceSource("reference", "hf:name[split]", f"{_LOADERS}:load_hub", lambda value: value.startswith("hf:"), _check_hub, "hub"),
    ReferenceSource("reference", "a folder of images", f"{_LOADERS}:load_folder", lambda value: Path(value).is_dir(), protocol="folder"),
    ReferenceSource(
        "reference",
        ".jsonl/.csv of pairs",
        f"{_LOADERS}:load_pairs",
        lambda value: Path(value).suffix in (".jsonl", ".csv") and not value.startswith("hf:"),
        _check_file,
        "pairs",
    ),
    ReferenceSource(
        "reference",
        "an .npz",
        f"{_LOADERS}:load_arrays",
        lambda value: Path(value).suffix == ".npz" and not value.startswith("hf:"),
        _check_file,
        "arrays or statistics",
    ),
    ReferenceSource("reference", "package.module:callable", f"{_LOADERS}:load_callable", lambda value: True, _check_anything, "callable"),
    PromptSource(
        "prompts",
        "demo",
        "pytest_diffusion.data.prompts:demo_prompts",
        lambda value: value == "demo",
        phrases="pytest_diffusion.data.prompts:demo_phrases",
        direction="pytest_diffusion.data.prompts:demo_direction",
    ),
    Source(
        "prompts",
        "a .txt with one a line, .jsonl or .csv with a 'prompt' column",
        "pytest_diffusion.data.prompts:read_prompts",
        lambda value: True,
        _check_prompts,
        "file",
    ),
)
