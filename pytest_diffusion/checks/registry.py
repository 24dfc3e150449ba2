"""The register of checks: one declaration each, which says all that belongs to a check."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from pytest_diffusion.checks.pictures import Pictures
from pytest_diffusion.config.registry import Registry
from pytest_diffusion.verdicts.drawing import Plot
from pytest_diffusion.verdicts.verdict import Limits, Measurement

Lens = Literal["paired", "metrics", "schedule", "attention", "latent", "always", "selftest"]
LENS_TITLES: dict[Lens, str] = {
    "paired": "Against the baseline",
    "metrics": "Metrics",
    "schedule": "Noise schedule",
    "attention": "Attention",
    "latent": "Latent space",
    "always": "Determinism and guidance",
    "selftest": "The gate itself",
}
F = TypeVar("F", bound=Callable[..., Measurement])


@dataclass(frozen=True)
class Check:
    """A check. Its function's name is its id in thresholds, report and messages; its parameters are fixtures."""

    name: str
    lens: Lens
    title: str
    """What holds of a sound model, in one line."""
    function: Callable[..., Measurement]
    figure: str = ""
    """What is measured, for the documentation."""
    sees: str = ""
    """Faults that it finds."""
    blind_to: str = ""
    """What a pass does not mean."""
    plot: Plot | None = None
    pictures: Pictures | None = None
    limits: Limits | None = None
    """Limits where no thresholds file has a table for it: for checks of other packages."""
    own_fixtures: Mapping[str, str] = field(default_factory=dict)
    uses_reference: bool = False
    """Whether it holds something against the reference, where its fixtures ask for that only when it is needed."""

    @property
    def fixtures(self) -> dict[str, str]:
        """Parameter name to the fixture that provides it: `diffusion_NAME`, unless the check names another."""
        names = inspect.signature(self.function).parameters
        return {name: self.own_fixtures.get(name, f"diffusion_{name}") for name in names}


CHECKS: Registry[Check] = Registry("check")
"""Checks by name, in the order of the checklist."""


def check(
    lens: Lens,
    title: str,
    *,
    figure: str = "",
    sees: str = "",
    blind_to: str = "",
    plot: Plot | None = None,
    pictures: Pictures | None = None,
    limits: Limits | None = None,
    fixtures: Mapping[str, str] | None = None,
    uses_reference: bool = False,
) -> Callable[[F], F]:
    """Decorator that registers a measuring function as a check of a lens.

    The function takes fixtures and returns a `Measurement`; it raises NotApplicable where there is nothing to measure.
    `plot` draws the measurement's series, `pictures` gives galleries of it. `limits` hold where no thresholds file has a
    table for the check, and `fixtures` names those of parameters whose fixture is not `diffusion_NAME`. Raises ValueError
    for a name that is taken and for an unknown lens.
    """
    if lens not in LENS_TITLES:
        raise ValueError(f"The lens is {lens!r}; expected one of: {', '.join(LENS_TITLES)}.")

    def register(function: F) -> F:
        name = function.__name__
        CHECKS.add(
            name,
            Check(name, lens, title, function, figure, sees, blind_to, plot, pictures, limits, dict(fixtures or {}), uses_reference),
            declared=function,
        )
        return function

    return register
