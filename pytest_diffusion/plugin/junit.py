"""Figures and outcomes of verdicts as properties of the JUnit file."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_diffusion.verdicts.verdict import Verdict


def properties(verdicts: Iterable[Verdict]) -> list[tuple[str, object]]:
    """Name and value of each property: `diffusion.CHECK` with the figure, `diffusion.CHECK.outcome` with the outcome."""
    found: list[tuple[str, object]] = []
    for verdict in verdicts:
        if verdict.measurement is not None:
            found.append((f"diffusion.{verdict.check}", verdict.to_json()["measurement"]["value"]))
        found.append((f"diffusion.{verdict.check}.outcome", verdict.outcome))
    return found
