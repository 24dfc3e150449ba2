"""Names of feature extractors, CLIP models and scorers: how each is recognised, and what is checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from pytest_diffusion.config.sources import Source, check_callable
from pytest_diffusion.verdicts.errors import SettingsError


def _check_weights(flag: str, value: str) -> None:
    name = value.partition(":")[2]
    if ":" in value and not Path(name).is_file():
        raise SettingsError(f"{flag}: the file {name!r} does not exist; expected inception:WEIGHTS_FILE.")


def _check_named(flag: str, value: str) -> None:
    kind, _, name = value.partition(":")
    if not name:
        raise SettingsError(f"{flag} is {value!r}; expected {kind}:PATH_OR_ID.")


def _check_clip(flag: str, value: str) -> None:
    path = Path(value)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SettingsError(f"{flag}: {value} has no config.json, so it is not a transformers model folder.")
    elif path.is_absolute() or value.startswith((".", "~")) or len(path.parts) > 2:
        raise SettingsError(f"{flag}: the folder {value} does not exist.")


def _check_metric(flag: str, value: str) -> None:
    module, _, name = value.partition(":")[2].rpartition(".")
    if not module or not name.isidentifier():
        raise SettingsError(f"{flag} is {value!r}; expected torchmetrics:package.Class, as torchmetrics:torchmetrics.image.TotalVariation.")
    check_callable(flag, f"{module}:{name}")


_LOADERS = "pytest_diffusion.features.extractors"
_SCORERS = "pytest_diffusion.features.image_scores"
SOURCES = (
    Source(
        "extractor",
        "inception",
        f"{_LOADERS}:load_inception",
        lambda value: value == "inception",
        cost="needs the extra inception; downloads its weights once",
    ),
    Source(
        "extractor", "inception:WEIGHTS_FILE", f"{_LOADERS}:load_inception", lambda value: value.startswith("inception:"), _check_weights
    ),
    Source("extractor", "pixels", f"{_LOADERS}:load_pixels", lambda value: value == "pixels", cost="nothing is loaded"),
    Source("extractor", "demo", f"{_LOADERS}:load_demo", lambda value: value == "demo", cost="included in the package"),
    Source("extractor", "clip:PATH_OR_ID", f"{_LOADERS}:load_clip_features", lambda value: value.startswith("clip:"), _check_named),
    Source("extractor", "dinov2:PATH_OR_ID", f"{_LOADERS}:load_dinov2", lambda value: value.startswith("dinov2:"), _check_named),
    Source("extractor", "package.module:callable", f"{_LOADERS}:load_own_function", lambda value: ":" in value, check_callable, "callable"),
    Source(
        "scorer", "demo", "pytest_diffusion.features.clip:load_demo_clip", lambda value: value == "demo", cost="included in the package"
    ),
    Source("score", "clip", f"{_SCORERS}:load_own_clip", lambda value: value == "clip", cost="the CLIP of --diffusion-clip-model"),
    Source("score", "clip:PATH_OR_ID", f"{_SCORERS}:load_clip_shaped", lambda value: value.startswith("clip:"), _check_named),
    Source("score", "dinov2:PATH_OR_ID", f"{_SCORERS}:load_subject_similarity", lambda value: value.startswith("dinov2:"), _check_named),
    Source("score", "vlm:PATH_OR_ID", f"{_SCORERS}:load_yes_logit", lambda value: value.startswith("vlm:"), _check_named),
    Source(
        "score",
        "torchmetrics:package.Class",
        "pytest_diffusion.features.foreign_metrics:load_metric",
        lambda value: value.startswith("torchmetrics:"),
        _check_metric,
        "torchmetrics",
    ),
    Source("score", "package.module:callable", f"{_SCORERS}:load_own_scorer", lambda value: ":" in value, check_callable, "callable"),
    Source("scorer", "a folder or a hub id", "pytest_diffusion.features.clip:load_clip_at", lambda value: True, _check_clip),
)
