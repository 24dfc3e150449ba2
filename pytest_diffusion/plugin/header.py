"""The lines of pytest's header while the plugin is active: effective settings, versions, and extensions that are broken."""

from __future__ import annotations

from dataclasses import fields

from pytest_diffusion.config.extensions import broken_extensions
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.config.threads import threads_text
from pytest_diffusion.config.versions import package_versions
from pytest_diffusion.verdicts.text import shown


def draws_samples(settings: Settings) -> bool:
    """Whether the lenses of a run look at samples of their own; a comparison draws as many as it needs."""
    if settings.model is None:
        return False
    return "metrics" in settings.lenses if settings.lenses is not None else settings.baseline is None


def cost_of(settings: Settings) -> str:
    """One line on what drawing the samples costs, as far as it is known before the model is loaded."""
    from pytest_diffusion.samples.timings import cost_text, known_timing

    return cost_text(settings, settings.num_samples, known_timing(settings))


def header_lines(settings: Settings) -> list[str]:
    """What is tested and how, with which versions, and one line for each entry point that cannot be loaded."""
    entries = []
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.name in ("sources", "report", "progress") or value is None or value == () or value is False:
            continue
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        entries.append(shown(f"{item.name}={text}"))
    cost = [f"cost: {cost_of(settings)}"] if draws_samples(settings) else []
    versions = ", ".join([*(f"{name} {found}" for name, found in package_versions().items()), *filter(None, [threads_text()])])
    lines = [", ".join(entries), *cost, versions, *broken_extensions()]
    return [f"diffusion: {line}" for line in lines]
