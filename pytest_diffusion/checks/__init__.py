"""The validation checklist: one function for each check; importing this package registers them all."""

from pytest_diffusion.checks import (
    attention,
    colours,
    denoising,
    determinism,
    directions,
    guards,
    latents,
    outliers,
    paths,
    quality,
    schedule,
)
from pytest_diffusion.checks.registry import Check, check

__all__ = [
    "Check",
    "all_checks",
    "attention",
    "colours",
    "denoising",
    "determinism",
    "directions",
    "guards",
    "latents",
    "outliers",
    "paths",
    "quality",
    "schedule",
]


def all_checks() -> list[Check]:
    """Every check, in the order of the checklist."""
    return check.all()
