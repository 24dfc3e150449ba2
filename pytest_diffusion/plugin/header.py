"""The lines of pytest's header while the plugin is active: effective settings, versions, and extensions that are broken."""

from __future__ import annotations

from dataclasses import fields

from pytest_diffusion.config.extensions import broken_extensions
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.config.versions import package_versions
from pytest_diffusion.verdicts.text import shown


def header_lines(settings: Settings) -> list[str]:
    """What is tested and how, with which versions, and one line for each entry point that cannot be loaded."""
    entries = []
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.name in ("sources", "report") or value is None or value == () or value is False:
            continue
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        entries.append(shown(f"{item.name}={text}"))
    lines = [", ".join(entries), ", ".join(f"{name} {found}" for name, found in package_versions().items()), *broken_extensions()]
    return [f"diffusion: {line}" for line in lines]
