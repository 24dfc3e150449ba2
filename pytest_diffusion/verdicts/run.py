"""What a run leaves: verdicts with the tests that gave them, what tests attached, and the facts of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_diffusion.verdicts.verdict import Verdict


@dataclass(frozen=True)
class Entry:
    """A verdict, the test that gave it, and how long that took in seconds."""

    verdict: Verdict
    nodeid: str = ""
    seconds: float = 0.0

    @property
    def is_of_checklist(self) -> bool:
        """Whether the built-in checklist gave it, and not a test of the user's."""
        return self.nodeid.startswith("diffusion::")

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain values, with the test and its seconds."""
        return {**self.verdict.to_json(), "nodeid": self.nodeid, "seconds": self.seconds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """The entry that `to_json` wrote."""
        return cls(Verdict.from_json(data), str(data.get("nodeid", "")), float(data.get("seconds", 0.0)))


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

    def to_json(self) -> dict[str, Any]:
        """Plain values, as xdist carries them from worker to controller."""
        return {
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "numbers": self.numbers,
            "figures": self.figures,
            "facts": self.facts,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Carried:
        """What `to_json` wrote."""
        verdicts = [Verdict.from_json(verdict) for verdict in data["verdicts"]]
        return cls(verdicts, list(data["numbers"]), list(data["figures"]), dict(data["facts"]))
