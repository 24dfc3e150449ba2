"""Frozen Settings, resolved once: marker, then option, then ini, then thresholds file, then default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pytest_diffusion.config.sources import CHECKS, check_callable, check_model, scheduler_classes
from pytest_diffusion.config.thresholds import Thresholds, load_thresholds
from pytest_diffusion.verdicts.errors import SettingsError, unknown_name

MODES = ("metrics", "schedule", "attention", "latent")
PROFILES = ("standard", "thorough")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """What is tested and how. `sources` says where each value that is not a default came from."""

    model: str | None = None
    modes: tuple[str, ...] | None = None
    reference: str | None = None
    prompts: str | None = None
    num_samples: int = 10_000
    steps: int = 50
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    scheduler: str | None = None
    scheduler_config: tuple[str, ...] = ()
    scheduler_profile: str = "standard"
    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    features: str = "inception"
    clip_model: str = "openai/clip-vit-large-patch14"
    attention_layers: tuple[str, ...] | None = None
    thresholds: tuple[str, ...] = ()
    report: str = "diffusion-report.html"
    cache_dir: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True)
class Option:
    """One option: its name in `Settings`, how to read its text, and its help."""

    name: str
    parse: Callable[[str], Any]
    metavar: str
    help: str
    many: bool = False
    """Whether it may be given more than once; its value is then a tuple."""

    @property
    def flag(self) -> str:
        return "--diffusion-" + self.name.replace("_", "-")

    @property
    def ini(self) -> str:
        return f"diffusion_{self.name}"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("expected a whole number of at least 1")
    return value


def _size(text: str) -> int:
    value = _positive(text)
    if value % 8:
        raise ValueError("expected a multiple of 8 pixels")
    return value


def _scale(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1000:
        raise ValueError("expected a number of at least 0")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise ValueError("expected a whole number of at least 0")
    return value


def _modes(text: str) -> tuple[str, ...]:
    modes = tuple(part.strip() for part in text.split(",") if part.strip())
    for mode in modes:
        if mode not in MODES:
            raise ValueError(unknown_name("the mode", mode, MODES))
    if not modes:
        raise ValueError(f"expected any of {','.join(MODES)}")
    return modes


def _layers(text: str) -> tuple[str, ...]:
    layers = tuple(part.strip() for part in text.split(",") if part.strip())
    if not layers:
        raise ValueError("expected names or prefixes of layers, separated by commas")
    return layers


def _entry(text: str) -> str:
    name, found, _ = text.partition("=")
    if not found or not name.isidentifier():
        raise ValueError("expected key=value, as in beta_schedule=linear")
    return text


def _profile(text: str) -> str:
    if text not in PROFILES:
        raise ValueError(unknown_name("the profile", text, PROFILES))
    return text


def _dtype(text: str) -> str:
    if text not in DTYPES:
        raise ValueError(unknown_name("the dtype", text, DTYPES))
    return text


def _device(text: str) -> str:
    kind = text.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps", "xpu"):
        raise ValueError(unknown_name("the device", kind, ("cpu", "cuda", "mps", "xpu")))
    return text


def _report(text: str) -> str:
    if not text.endswith(".html"):
        raise ValueError("expected a path that ends in .html; the .json lies beside it")
    return text


OPTIONS = (
    Option(
        "model",
        str,
        "NAME",
        "what is tested: a hub id, a diffusers folder, a .safetensors file, 'demo', analytic:NAME or package.module:callable",
    ),
    Option("modes", _modes, "MODES", "any of metrics,schedule,attention,latent (default: all that the model supports)"),
    Option(
        "reference",
        str,
        "REF",
        "real images: 'demo', 'digits', a folder, .jsonl/.csv of pairs, an .npz, hf:name[split] or package.module:callable",
    ),
    Option("prompts", str, "FILE", "prompts: 'demo', a text file with one a line, or .jsonl/.csv with a 'prompt' column"),
    Option("num_samples", _positive, "N", "samples generated for the metrics (default: 10000)"),
    Option("steps", _positive, "N", "inference steps (default: 50)"),
    Option("guidance_scale", _scale, "X", "classifier-free guidance (default: the pipeline's own)"),
    Option("height", _size, "PIXELS", "height of the samples (default: the pipeline's own)"),
    Option("width", _size, "PIXELS", "width of the samples (default: the pipeline's own)"),
    Option("seed", _seed, "N", "sample i is drawn from seed N + i (default: 0)"),
    Option(
        "scheduler",
        str,
        "CLASS",
        "diffusers class name or package.module:Class, built from the model's scheduler config; without a model it is held against "
        "the scheduler checks",
    ),
    Option("scheduler_config", _entry, "KEY=VALUE", "an entry of the scheduler's configuration; may be given more than once", many=True),
    Option("scheduler_profile", _profile, "NAME", "how far the scheduler checks go: standard or thorough (default: standard)"),
    Option("device", _device, "DEVICE", "cpu, cuda, cuda:1, mps (default: cuda, else mps, else cpu)"),
    Option("dtype", _dtype, "DTYPE", "float32, float16 or bfloat16 (default: float32 on cpu, else as a local folder is stored)"),
    Option("batch_size", _positive, "N", "samples in a batch (default: by device and size; halves when memory runs out)"),
    Option(
        "features",
        str,
        "NAME",
        "feature extractor: inception[:WEIGHTS_FILE], pixels, demo, clip:PATH_OR_ID, dinov2:PATH_OR_ID or package.module:callable",
    ),
    Option("clip_model", str, "NAME", "CLIP for the CLIP score: 'demo', a folder or a hub id (default: openai/clip-vit-large-patch14)"),
    Option(
        "attention_layers",
        _layers,
        "LAYERS",
        "layers whose attention is judged, by name or prefix, comma-separated (default: up_blocks, else all)",
    ),
    Option("thresholds", str, "NAME", "a preset or a TOML file; may be given twice, later wins (default: by model family)", many=True),
    Option("report", _report, "PATH", "HTML report (default: diffusion-report.html); the .json lies beside it"),
    Option("cache_dir", str, "DIR", "where samples are kept between runs (default: the user cache folder)"),
)


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
            text = texts.get(option.name)
            if not text:
                continue
            shown = option.flag if origin == "option" else f"ini {option.ini}"
            values[option.name] = tuple(_parse(option, one, shown) for one in text) if option.many else _parse(option, text, shown)
            sources[option.name] = origin
            break
    names = values.get("thresholds", ())
    if not names and (own := own_preset(values.get("model"))):
        names = (own,)
    thresholds = load_thresholds(names)
    for name, value in thresholds.settings.items():
        option = _option(name, f"{thresholds.files[-1]} [settings]")
        if name in ("model", "thresholds"):
            raise SettingsError(f"{thresholds.files[-1]} [settings] may not set {name}.")
        if name not in values:
            parsed = _parse(option, str(value), f"{thresholds.files[-1]} [settings] {name}")
            values[name] = (parsed,) if option.many else parsed
            sources[name] = thresholds.files[-1]
    settings = Settings(**{**values, "thresholds": tuple(names)}, sources=sources)
    validate(settings)
    return settings, thresholds


def own_preset(model: str | None) -> str | None:
    """The thresholds preset, with settings, of a model that comes with the project; None for others."""
    if model == "demo":
        return "demo"
    return "analytic" if model is not None and model.startswith("analytic:") else None


def override(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with a marker's arguments on top. Raises SettingsError for a wrong name or value."""
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    for name, value in changes.items():
        option = _option(name, "@pytest.mark.diffusion")
        if option.many:
            values[name] = tuple(
                _parse(option, one, f"@pytest.mark.diffusion({name})") for one in ([value] if isinstance(value, str) else value)
            )
        elif name in ("modes", "attention_layers") and value is not None and not isinstance(value, str):
            values[name] = _parse(option, ",".join(value), f"@pytest.mark.diffusion({name})")
        else:
            values[name] = _parse(option, str(value), f"@pytest.mark.diffusion({name})") if value is not None else None
    values["sources"] = {**settings.sources, **dict.fromkeys(changes, "marker")}
    if "thresholds" in changes or own_preset(changes.get("model")) is not None:
        values["thresholds"] = tuple(values["thresholds"]) or (own_preset(changes.get("model")) or "default",)
        for name, value in load_thresholds(values["thresholds"]).settings.items():
            if values["sources"].get(name) not in ("marker", "option", "ini"):
                values[name] = _parse(_option(name, "[settings]"), str(value), f"[settings] {name}")
                values["sources"][name] = "marker"
    changed = Settings(**values)
    validate(changed)
    return changed


def validate(settings: Settings) -> None:
    """Look at the files and modules that the settings name, without importing them."""
    if settings.model is not None:
        check_model("--diffusion-model", settings.model)
    for name in ("reference", "prompts", "features", "clip_model"):
        value = getattr(settings, name)
        if value is not None and value != "demo" and (name, value) not in (("reference", "digits"), ("features", "pixels")):
            CHECKS[name](_option(name, "").flag, value)
    if settings.scheduler is not None:
        if ":" in settings.scheduler:
            check_callable("--diffusion-scheduler", settings.scheduler)
        elif settings.scheduler not in (known := scheduler_classes()):
            raise SettingsError(unknown_name("--diffusion-scheduler", settings.scheduler, known))


def _option(name: str, shown: str) -> Option:
    for option in OPTIONS:
        if option.name == name:
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
