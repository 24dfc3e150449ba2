"""Frozen Settings, resolved once: marker, then option, then ini, then thresholds file, then default."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pytest_diffusion.config.options import OPTIONS, Option
from pytest_diffusion.config.parsers import split_lora
from pytest_diffusion.config.remote import is_url
from pytest_diffusion.config.sources import Kind, check_source, model_source, source_of
from pytest_diffusion.config.thresholds import Thresholds, lacks_family, load_thresholds
from pytest_diffusion.verdicts.errors import SettingsError, unknown_name

SOURCES_BY_SETTING: tuple[tuple[Kind, str], ...] = (
    ("model", "model"),
    ("reference", "reference"),
    ("prompts", "prompts"),
    ("extractor", "features"),
    ("scorer", "clip_model"),
    ("scheduler", "scheduler"),
)
"""Kinds of sources, and the setting whose value names one."""
_NOT_FROM_FILES = ("model", "baseline", "lora", "thresholds", "report", "cache_dir", "history", "trust_remote_code")
"""Settings that a file of limits may not decide: what is judged, by what, and where files are written."""


@dataclass(frozen=True)
class Settings:
    """What is tested and how. `sources` says where each value that is not a default came from."""

    model: str | None = None
    baseline: str | None = None
    lora: str | None = None
    lenses: tuple[str, ...] | None = None
    reference: str | None = None
    prompts: str | None = None
    retention: str | None = None
    scorer: tuple[str, ...] = ()
    subject: str | None = None
    max_samples: int | None = None
    slices: tuple[str, ...] = ()
    selftest: str | None = None
    selftest_require: tuple[str, ...] = ()
    num_samples: int = 10_000
    steps: int = 50
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    scheduler: str | None = None
    scheduler_config: tuple[str, ...] = ()
    scheduler_profile: str = "standard"
    scheduler_plan: tuple[str, ...] = ()
    scheduler_step: tuple[str, ...] = ()
    scheduler_kind: str | None = None
    scheduler_prediction_type: str | None = None
    scheduler_names_end: bool = False
    scheduler_shape: str | None = None
    scheduler_expected: tuple[str, ...] = ()
    scheduler_baseline: str | None = None
    device: str | None = None
    dtype: str | None = None
    compile: str | None = None
    memory_format: str | None = None
    batch_size: int | None = None
    effort: float = 1.0
    history: str | None = None
    fail_on_drop: tuple[str, ...] = ()
    progress: str = "auto"
    budget: float | None = None
    features: str = "inception"
    clip_model: str = "openai/clip-vit-large-patch14"
    attention_layers: tuple[str, ...] | None = None
    thresholds: tuple[str, ...] = ()
    report: str = "diffusion-report.html"
    cache_dir: str | None = None
    trust_remote_code: bool = False
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)

    def times_effort(self, count: int) -> int:
        """How many prompts, seeds or images a check uses that uses `count` of them without `--diffusion-effort`."""
        return math.ceil(round(count * self.effort, 6))  # 20 times 1.1 is a little more than 22


def resolve(
    *, options: Mapping[str, str | Sequence[str] | None], ini: Mapping[str, str | Sequence[str] | None]
) -> tuple[Settings, Thresholds]:
    """Settings from texts of the command line and the ini file, and the thresholds they name.

    `demo` as the model asks for the demo's thresholds, whose `[settings]` table names the demo's own
    material. Raises SettingsError in one line for whatever is wrong, before anything heavy is imported.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option in OPTIONS:
        for origin, texts in (("option", options), ("ini", ini)):
            text = next((texts[name] for name in (option.name, *option.aliases) if texts.get(name)), None)
            if not text:
                continue
            shown = option.flag if origin == "option" else f"ini {option.ini}"
            values[option.name] = tuple(_parse(option, one, shown) for one in text) if option.many else _parse(option, text, shown)
            sources[option.name] = origin
            break
    _name_both(values)
    names = values.get("thresholds", ())
    if lacks_family(names) and (own := own_preset(values.get("model"))):
        names = (own, *names)
    thresholds = load_thresholds(names)
    for name, (parsed, origin) in _file_settings(thresholds).items():
        if name not in values:
            values[name], sources[name] = parsed, origin
    settings = Settings(**{**values, "thresholds": tuple(names)}, sources=sources)
    validate(settings)
    return settings, thresholds


def _name_both(values: dict[str, Any]) -> None:
    """With an adapter, candidate and baseline are the same model, with it and without it; either option may name it."""
    if "lora" in values and not (values.get("model") and values.get("baseline")):
        name = values.get("model") or values.get("baseline")
        if name is None:
            raise SettingsError("--diffusion-lora needs the model that it was trained on: give it as --diffusion-baseline.")
        values["model"] = values["baseline"] = name


def own_preset(model: str | None) -> str | None:
    """The thresholds preset, with settings, that belongs to a model by its source; None for others."""
    return (model_source(model).preset or None) if model is not None else None


def override(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with a marker's arguments on top. Raises SettingsError for a wrong name or value."""
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    sources = dict(settings.sources)
    for given, value in changes.items():
        option = _option(given, "@pytest.mark.diffusion")
        name = option.name
        sources[name] = "marker"
        if option.many:
            values[name] = tuple(
                _parse(option, one, f"@pytest.mark.diffusion({name})") for one in ([value] if isinstance(value, str) else value)
            )
        elif option.is_list and value is not None and not isinstance(value, str):
            values[name] = _parse(option, ",".join(value), f"@pytest.mark.diffusion({name})")
        else:
            values[name] = _parse(option, str(value), f"@pytest.mark.diffusion({name})") if value is not None else None
    values["sources"] = sources
    if "thresholds" in changes or own_preset(changes.get("model")) is not None:
        values["thresholds"] = tuple(values["thresholds"]) or (own_preset(changes.get("model")) or "default",)
        for name, (parsed, _) in _file_settings(load_thresholds(values["thresholds"])).items():
            if sources.get(name) not in ("marker", "option", "ini"):
                values[name], sources[name] = parsed, "marker"
    changed = Settings(**values)
    validate(changed)
    return changed


def validate(settings: Settings) -> None:
    """Look at the files and modules that the settings name, without importing them."""
    for kind, name in SOURCES_BY_SETTING:
        value = getattr(settings, name)
        if value is not None:
            check_source(kind, value, trusts_code=settings.trust_remote_code)
    _validate_comparison(settings)


def _validate_comparison(settings: Settings) -> None:
    """What only the comparison with a baseline uses."""
    if settings.baseline is None:
        for name in ("retention", "scorer", "subject", "max_samples", "slices"):
            if getattr(settings, name) and settings.sources.get(name) in ("option", "marker"):
                raise SettingsError(
                    f"--diffusion-{name.replace('_', '-')} is used with --diffusion-baseline alone; name the model to compare with."
                )
        if "paired" in (settings.lenses or ()):
            raise SettingsError("--diffusion-lenses: paired compares with a baseline; name it with --diffusion-baseline.")
        return
    kind = baseline_kind(settings.baseline)
    if kind == "report" and is_url(settings.baseline):
        raise SettingsError(
            f"--diffusion-baseline: {settings.baseline} is a report; download it, or name a saved baseline (NAME.diffusion)."
        )
    if kind == "model":
        check_source("model", settings.baseline, trusts_code=settings.trust_remote_code, flag="--diffusion-baseline")
    elif not is_url(settings.baseline) and not Path(settings.baseline).is_file():
        raise SettingsError(f"--diffusion-baseline: the file {settings.baseline} does not exist.")
    if settings.lora is not None:
        if kind != "model":
            raise SettingsError(f"--diffusion-lora: an adapter is put on a model, and {settings.baseline} is none.")
        path, _ = split_lora(settings.lora)
        if not Path(path).exists():
            raise SettingsError(f"--diffusion-lora: {path} does not exist.")
    for name in ("retention", "subject"):
        if getattr(settings, name) is not None:
            check_source("reference", getattr(settings, name), flag=f"--diffusion-{name}")
    for value in settings.scorer:
        check_source("score", value)
        if value.startswith("dinov2:") and settings.subject is None:
            raise SettingsError(
                f"--diffusion-scorer: {value} compares with pictures of a subject; give them with --diffusion-subject=FOLDER."
            )


def baseline_kind(value: str) -> str:
    """What a baseline is: "saved" (NAME.diffusion), "report" (a report.json), or "model"."""
    return {".diffusion": "saved", ".json": "report"}.get(Path(value).suffix, "model")


def _file_settings(thresholds: Thresholds) -> dict[str, tuple[Any, str]]:
    """Value and file of each setting of the tables `[settings]`. Raises SettingsError for what a file of limits may not decide."""
    found: dict[str, tuple[Any, str]] = {}
    for given, (value, file) in thresholds.settings.items():
        shown = f"{file} [settings]"
        option = _option(given, shown)
        if option.name in _NOT_FROM_FILES:
            raise SettingsError(f"{shown} may not set {option.name}.")
        texts = value if option.many and isinstance(value, list) else [value]
        parsed = [_parse(option, str(text), f"{shown} {option.name}") for text in texts]
        for kind, name in SOURCES_BY_SETTING:
            if name == option.name and source_of(kind, parsed[0]).protocol == "callable":
                raise SettingsError(f"{shown} may not name code: {option.name} is {parsed[0]!r}; give it as {option.flag}.")
        found[option.name] = (tuple(parsed) if option.many else parsed[0], file)
    return found


def _option(name: str, shown: str) -> Option:
    for option in OPTIONS:
        if name in (option.name, *option.aliases):
            return option
    raise SettingsError(f"{shown}: " + unknown_name("setting", name, [option.name for option in OPTIONS]))


def _parse(option: Option, text: Any, shown: str) -> Any:
    try:
        return option.parse(text)
    except ValueError as error:
        reason = str(error)
        if reason.startswith(("invalid literal", "could not convert")):
            reason = "expected a number"
        raise SettingsError(f"{shown} is {text!r}: {reason}.".replace("..", ".")) from None
