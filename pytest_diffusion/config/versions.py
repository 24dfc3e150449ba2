"""Versions of the packages that have a say in samples and figures, read without importing them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

OURS = "pytest-diffusion"


def package_versions(names: Sequence[str] = (OURS, "torch", "diffusers", "transformers")) -> dict[str, str]:
    """Installed version by package, "not installed" where there is none."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def versions_text(names: Sequence[str] = ("torch", "transformers", OURS)) -> str:
    """The versions that a figure of features rests on, as one entry of its protocol."""
    return ", ".join(f"{name} {found}" for name, found in package_versions(names).items())
