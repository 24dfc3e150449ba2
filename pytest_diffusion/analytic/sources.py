"""The model source `analytic:NAME`: closed-form models."""

from __future__ import annotations

from pytest_diffusion.config.sources import ModelSource
from pytest_diffusion.verdicts.errors import SettingsError


def _check(flag: str, value: str) -> None:
    if not value.partition(":")[2]:
        raise SettingsError(f"{flag} is {value!r}; expected analytic:NAME, as in analytic:wiener.")


SOURCES = (
    ModelSource(
        "model",
        "analytic:NAME",
        "pytest_diffusion.analytic.pipeline:load_analytic",
        lambda value: value.startswith("analytic:"),
        _check,
        "analytic",
        is_own_code="pytest_diffusion.analytic.registry:is_own_code",
        preset="analytic",
        cost="is fitted to the reference, or to digits",
    ),
)
