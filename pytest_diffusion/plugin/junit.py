"""Figures and outcomes of verdicts as properties of the JUnit file."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_diffusion.verdicts.verdict import Verdict


def properties(verdicts: Iterable[Verdict]) -> list[tuple[str, object]]:
    """Name and value of each property: `diffusion.CHECK` with the figure, and `diffusion.CHECK.outcome`.

    Behind the same name stand `low` and `high` (the ends of its interval), `unit`, `num_samples`, `at_least`, `at_most`, `limit_from`
    (file and table) and `source`, where they are known.
    """
    found: list[tuple[str, object]] = []
    for verdict in verdicts:
        name, data = f"diffusion.{verdict.check}", verdict.to_json()
        measurement, limits = data["measurement"] or {}, data["limits"] or {}
        low, high = measurement.get("interval") or (None, None)
        rest = {
            "outcome": verdict.outcome,
            "low": low,
            "high": high,
            "unit": measurement.get("unit") or None,
            "num_samples": measurement.get("num_samples"),
            "at_least": limits.get("at_least"),
            "at_most": limits.get("at_most"),
            "limit_from": limits.get("where") or None,
            "source": limits.get("source") or None,
        }
        found += [(name, measurement["value"])] if measurement else []
        found += [(f"{name}.{key}", value) for key, value in rest.items() if value is not None]
    return found
