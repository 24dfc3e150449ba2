"""Sources: what the value of an option may name, how that is checked without heavy imports, and what loads it.

Models, references, prompts, extractors, scorers (CLIP models) and schedulers have one grammar, declared here entry by
entry in `sources.py` of the folder that loads them. Packages add theirs by the entry point group `pytest_diffusion.sources`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pytest_diffusion.config.extensions import SOURCES, extensions
from pytest_diffusion.config.registry import Registry
from pytest_diffusion.config.source_code import defined_names
from pytest_diffusion.verdicts.errors import SettingsError, nearest, unknown_name

Kind = Literal["model", "reference", "prompts", "extractor", "scorer", "scheduler", "score"]
FLAGS: dict[Kind, str] = {
    "model": "--diffusion-model",
    "reference": "--diffusion-reference",
    "prompts": "--diffusion-prompts",
    "extractor": "--diffusion-features",
    "scorer": "--diffusion-clip-model",
    "scheduler": "--diffusion-scheduler",
    "score": "--diffusion-scorer",
}
"""The option whose value each kind is."""

# Named as text, since these folders lie above this one.
_DECLARED_IN = (
    "pytest_diffusion.models.sources",
    "pytest_diffusion.analytic.sources",
    "pytest_diffusion.data.sources",
    "pytest_diffusion.features.sources",
)


@dataclass(frozen=True)
class Source:
    """One way to name a thing of a kind.

    `name` stands in help and messages ("demo", "analytic:NAME", "a diffusers folder"). `load` is "module:function" or
    a function, called with the value and what its kind hands over: settings (model), height, width and limit
    (reference), device (extractor, scorer), nothing (prompts, scheduler).
    """

    kind: Kind
    name: str
    load: str | Callable[..., Any]
    fits: Callable[[str], bool] | None = None
    """Whether a value is of this source; by default the name itself, or the name, a colon and more."""
    check: Callable[[str, str], None] | None = None
    """Raises SettingsError for a flag and a value that cannot be loaded; imports nothing heavy."""
    protocol: str = ""
    """What the report says of where a thing came from: "folder", "hub"; by default the name."""
    cost: str = ""
    """What opening it costs, for people: "downloads from the hub"."""
    check_code: Callable[[str, str], None] | None = None
    """Raises SettingsError where loading may run code that came with the thing; not asked where the user trusts it."""

    def accepts(self, value: str) -> bool:
        """Whether a value is of this source."""
        return self.fits(value) if self.fits is not None else value == self.name or value.startswith(f"{self.name}:")

    def loader(self) -> Callable[..., Any]:
        """The loading function, imported now."""
        return self.load if callable(self.load) else imported(self.load)


@dataclass(frozen=True)
class ModelSource(Source):
    """A source of models, with what the gate must know of one before it is loaded."""

    folder: Callable[[str], Path | None] = lambda value: None
    """The diffusers folder on this machine that a value stands for, if any."""
    is_checkpoint: bool = False
    """Whether stored weights are loaded, and not code of somebody's run."""
    is_hub_id: bool = False
    is_own_code: str | bool = False
    """Whether a user's code decides the samples; "module:function" asks it of a value."""
    preset: str = ""
    """The thresholds preset, with settings, that belongs to the model."""

    def runs_own_code(self, value: str) -> bool:
        """Whether a user's code decides the samples, which no fingerprint of weights and configurations can see."""
        if isinstance(self.is_own_code, bool):
            return self.is_own_code
        return bool(imported(self.is_own_code)(value))


@dataclass(frozen=True)
class ReferenceSource(Source):
    """A source of reference images; at least `images` of them are read, or as many as there are samples."""

    images: int = 10_000


@dataclass(frozen=True)
class PromptSource(Source):
    """A source of prompts, with prompts for the lenses that need to know their words; "module:function" or None for built-in ones."""

    phrases: str | None = None
    """Gives prompts whose modifier and noun are known, for the attention lens."""
    direction: str | None = None
    """Gives two prompts that differ in one attribute, for the latent lens."""


def sources(kind: Kind) -> list[Source]:
    """Sources of a kind: ours, then those of other packages, in the order in which they are tried."""
    return [source for source in [*_built_in(), *_added()] if source.kind == kind]


def source_of(kind: Kind, value: str) -> Source:
    """The source that a value is of. Raises SettingsError for a value that is of none."""
    name = value.partition(":")[0]
    if name in extensions(SOURCES).broken:
        raise SettingsError(f"{FLAGS[kind]} is {value!r}: the {extensions(SOURCES).broken[name]}.")
    # A name that a package has chosen is more specific than the grammar of callables and hub ids.
    for source in [*_added(), *_built_in()]:
        if source.kind == kind and source.accepts(value):
            return source
    raise SettingsError(unknown_name(FLAGS[kind], value, [source.name for source in sources(kind)]))


def model_source(value: str) -> ModelSource:
    """The source of a model's name. Raises SettingsError for a value that is of none."""
    found = source_of("model", value)
    return found if isinstance(found, ModelSource) else ModelSource("model", found.name, found.load, found.fits, is_own_code=True)


def check_source(kind: Kind, value: str, *, trusts_code: bool = False, flag: str = "") -> None:
    """Raise SettingsError, in one line, unless a value can be loaded as far as can be seen without loading it.

    `flag` is the option that named it, where that is not the one of the kind.
    """
    source, shown = source_of(kind, value), flag or FLAGS[kind]
    if source.check is not None:
        source.check(shown, value)
    if source.check_code is not None and not trusts_code:
        source.check_code(shown, value)


def load_source(kind: Kind, value: str, **context: Any) -> Any:
    """The thing that a value names. Raises SettingsError for a value that names none, and what its loader raises."""
    return source_of(kind, value).loader()(value, **context)


def listed(kind: Kind) -> str:
    """Names of a kind's sources for help and messages: "'demo', analytic:NAME or a diffusers folder"."""
    names = [f"'{source.name}'" if source.name.isidentifier() else source.name for source in sources(kind)]
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


@cache
def _built_in() -> tuple[Source, ...]:
    return tuple(source for module in _DECLARED_IN for source in importlib.import_module(module).SOURCES)


@cache
def _added() -> tuple[Source, ...]:
    """Sources of other packages. Raises SettingsError for an entry point that gives something else, or takes a name of ours."""
    known = Registry[Source]("source")
    for source in _built_in():
        known.add(f"{source.kind} {source.name}", source)
    found: list[Source] = []
    for name, value in extensions(SOURCES).loaded.items():
        for source in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(source, Source):
                raise SettingsError(
                    f"The entry point {name} ({SOURCES}) gives {type(source).__name__}; expected a Source, or a list of them."
                )
            try:
                found.append(known.add(f"{source.kind} {source.name}", source))
            except ValueError as error:
                raise SettingsError(f"The entry point {name} ({SOURCES}): {error}") from None
    return tuple(found)


def imported(name: str) -> Callable[..., Any]:
    """The function of ours that "module:function" names."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def check_callable(flag: str, value: str) -> None:
    """Raise SettingsError unless a value has the form package.module:name, its top package is there, and, where known, the name."""
    module, _, attribute = value.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise SettingsError(f"{flag} is {value!r}; expected package.module:name.")
    # Only the top package is looked for: finding a submodule would import its parents.
    top = module.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        raise SettingsError(f"{flag}: no module named {top!r} (from {value!r}); is its folder on the path (pytest's pythonpath ini)?")
    names = defined_names(module)
    if names is not None and attribute not in names:
        raise SettingsError(f"{flag}: {module} has no {attribute!r}.{nearest(attribute, names)}")
