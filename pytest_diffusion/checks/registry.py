"""The register of checks: one declaration each, whose name is its id everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from pytest_diffusion.verdicts.verdict import Measurement

Mode = Literal["metrics", "schedule", "attention", "latent", "always"]
F = TypeVar("F", bound=Callable[..., Measurement])


@dataclass(frozen=True)
class Check:
    """A check: its function's name and parameters, the lens it belongs to, and a title for people."""

    name: str
    mode: Mode
    title: str
    function: Callable[..., Measurement]

    @property
    def fixtures(self) -> dict[str, str]:
        """Parameter name to the fixture that provides it."""
        return {name: f"diffusion_{name}" for name in inspect.signature(self.function).parameters}


class Registry:
    """Checks by name, in the order of their declaration."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    def __call__(self, mode: Mode, title: str) -> Callable[[F], F]:
        """Decorator that registers a measuring function. Raises ValueError for a name that is taken."""

        def register(function: F) -> F:
            name = function.__name__
            if name in self._checks:
                raise ValueError(f"There is already a check named {name!r}.")
            self._checks[name] = Check(name, mode, title, function)
            return function

        return register

    def __getitem__(self, name: str) -> Check:
        return self._checks[name]

    def all(self) -> list[Check]:
        return list(self._checks.values())


check = Registry()
