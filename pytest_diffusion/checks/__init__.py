"""The validation checklist: one function for each check, in modules by subject."""

from __future__ import annotations

from importlib import import_module

from pytest_diffusion.checks.registry import CHECKS, LENS_TITLES, Check, check

__all__ = ["LENS_TITLES", "Check", "all_checks", "check"]

# Named as text, since its folder lies above this one.
_PAIRED = "pytest_diffusion.gate.checks"
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
    """Every check of ours, in the order of the checklist, and then those that other packages add by entry points.

    Raises SettingsError for an entry point that declares no check of its own name: it would never run.
    """
    from pytest_diffusion.config import extensions
    from pytest_diffusion.verdicts.errors import SettingsError

    modules = [import_module(module).__name__ for module in (_PAIRED, *(f"{__name__}.{module}" for module in _MODULES))]
    # Each entry point is a decorated function, which registers itself when it is loaded.
    for name in extensions.extensions(extensions.CHECKS).loaded:
        if name not in CHECKS:
            raise SettingsError(
                f"The entry point {name} ({extensions.CHECKS}) declares no check named {name!r}; expected a function decorated with @check."
            )
    # A user's test may have imported some of the modules before, in another order.
    place = {module: index for index, module in enumerate(modules)}
    return sorted(CHECKS, key=lambda one: place.get(one.function.__module__, len(place)))
