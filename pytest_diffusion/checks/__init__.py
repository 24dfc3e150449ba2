"""The validation checklist: one function for each check, in modules by subject."""

from __future__ import annotations

from importlib import import_module

from pytest_diffusion.checks.registry import CHECKS, LENS_TITLES, Check, check

__all__ = ["LENS_TITLES", "Check", "all_checks", "check"]

# In the order of the checklist: what costs least comes first.
_MODULES = (
    "schedule",
    "guards",
    "colours",
    "distances",
    "manifolds",
    "scores",
    "denoising",
    "attention",
    "words",
    "vae",
    "latents",
    "paths",
    "directions",
    "outliers",
    "determinism",
)


def all_checks() -> list[Check]:
    """Every check of ours, in the order of the checklist, and then those that other packages add by entry points."""
    from pytest_diffusion.config import extensions

    modules = [import_module(f"{__name__}.{module}").__name__ for module in _MODULES]
    # Each entry point is a decorated function, which registers itself when it is loaded.
    extensions.extensions(extensions.CHECKS)
    # A user's test may have imported some of the modules before, in another order.
    place = {module: index for index, module in enumerate(modules)}
    return sorted(CHECKS, key=lambda one: place.get(one.function.__module__, len(place)))
