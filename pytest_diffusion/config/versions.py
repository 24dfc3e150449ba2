"""Versions of the packages that have a say in samples and figures, read without importing them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata, version

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


def documentation() -> str:
    """The address of this version's documentation, ending in a slash; empty where the installed package names none.

    A package that was built by a release workflow knows where it comes from (`hatch_build.py`); one from a clone does not.
    """
    try:
        urls = metadata(OURS).get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    found = dict(str(url).split(", ", 1) for url in urls)
    return f"{found['Documentation'].rstrip('/')}/{short_version(version(OURS))}/" if "Documentation" in found else ""


def short_version(full: str) -> str:
    """The first two numbers, by which the documentation is published: "0.1" for 0.1.3."""
    return ".".join(full.split(".")[:2])


def versions_text(names: Sequence[str] = ("torch", "transformers", OURS)) -> str:
    """The versions that a figure of features rests on, as one entry of its protocol."""
    return ", ".join(f"{name} {found}" for name, found in package_versions(names).items())
