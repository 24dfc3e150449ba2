"""The lines of pytest's header while the plugin is active: effective settings, versions, and extensions that are broken."""

from __future__ import annotations

from dataclasses import fields

from pytest_diffusion.config.extensions import broken_extensions
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.config.versions import package_versions


def header_lines(settings: Settings) -> list[str]:
    """What is tested and how, with which versions, and one line for each entry point that cannot be loaded."""
    shown = []
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.name in ("sources", "report") or value is None or value == ():
            continue
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        shown.append(f"{item.name}={text}")
    lines = [", ".join(shown), ", ".join(f"{name} {found}" for name, found in package_versions().items()), *broken_extensions()]
    return [f"diffusion: {line}" for line in lines]
