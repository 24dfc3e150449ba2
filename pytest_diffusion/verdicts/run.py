"""What a run leaves: verdicts with the tests that gave them, what tests attached, and the facts of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pytest_diffusion.verdicts.error_rates import distance_to_limit
from pytest_diffusion.verdicts.plain_json import plain
from pytest_diffusion.verdicts.verdict import JUDGED, Verdict


@dataclass(frozen=True)
class Entry:
    """A verdict, the test that gave it, and how long that took in seconds."""

    verdict: Verdict
    nodeid: str = ""
    seconds: float = 0.0
    uses_reference: bool = False
    """Whether the test was given the reference."""
    excused: str = ""
    """Why pytest did not count an outcome that closes the gate: "xfail", "rerun"; empty where it did."""
    of_run: str = ""
    """When the run was made that gave it, where that is an earlier one."""

    @property
    def is_of_checklist(self) -> bool:
        """Whether the built-in checklist gave it, and not a test of the user's."""
        return self.nodeid.startswith("diffusion::")

    @property
    def is_judged(self) -> bool:
        """Whether a figure was held against a limit, and the outcome counts."""
        return self.verdict.outcome in JUDGED and not self.excused

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain values, with the test, its seconds and the figure's distance to its limit in standard errors."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "verdict"}
        return {**self.verdict.to_json(), **own, "distance_to_limit": plain(distance_to_limit(self.verdict))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """The entry that `to_json` wrote."""
        own = {item.name: data[item.name] for item in fields(cls) if item.name != "verdict" and item.name in data}
        return cls(Verdict.from_json(data), **own)


@dataclass(frozen=True)
class Carried:
    """What one test report brings to the reporter."""

    verdicts: list[Verdict] = field(default_factory=list)
    numbers: list[dict[str, Any]] = field(default_factory=list)
    """Attached by the test: name, value and unit."""
    figures: list[dict[str, Any]] = field(default_factory=list)
    """Attached by the test: name and picture, a data URI."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Facts of the run: device, weights, samples and the like, as plain values."""
    uses_reference: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values, as xdist carries them from worker to controller."""
        return {
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "numbers": self.numbers,
            "figures": self.figures,
            "facts": self.facts,
            "uses_reference": self.uses_reference,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Carried:
        """What `to_json` wrote."""
        verdicts = [Verdict.from_json(verdict) for verdict in data["verdicts"]]
        return cls(verdicts, list(data["numbers"]), list(data["figures"]), dict(data["facts"]), bool(data["uses_reference"]))
