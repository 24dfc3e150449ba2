"""The lines of pytest's header while the plugin is active: effective settings, device, versions, seed."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version

from pytest_diffusion.config.settings import Settings

PACKAGES = ("torch", "diffusers", "transformers")


def header_lines(settings: Settings) -> list[str]:
    """Two lines: what is tested and how, and with which versions."""
    shown = []
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.name in ("sources", "report") or value is None or value == ():
            continue
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        shown.append(f"{item.name}={text}")
    return ["diffusion: " + ", ".join(shown), "diffusion: " + ", ".join(f"{name} {found}" for name, found in package_versions().items())]


def package_versions() -> dict[str, str]:
    """Installed versions, read without importing anything."""
    found = {}
    for name in ("pytest-diffusion", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
