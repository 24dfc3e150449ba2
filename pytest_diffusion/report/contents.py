"""What a report says: verdicts worst first, facts of the run and what tests attached; JSON only when it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.verdicts.gate import Gate, gate_of
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Outcome

SCHEMA = 1
OUTCOMES: tuple[Outcome, ...] = ("fail", "inconclusive", "skipped", "pass")
"""From the worst to the best."""


def worst_first(entries: Iterable[Entry]) -> list[Entry]:
    """Entries by outcome, worst first, otherwise in the order in which they came."""
    return sorted(entries, key=lambda entry: (not entry.verdict.gates, OUTCOMES.index(entry.verdict.outcome)))


def counts(entries: Iterable[Entry]) -> dict[str, int]:
    """How many verdicts have each outcome, worst first, without zeros."""
    found = Counter(entry.verdict.outcome for entry in entries)
    return {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}


@dataclass(frozen=True)
class Report:
    """All that a report says. `entries` come worst first."""

    entries: list[Entry]
    settings: Settings
    command: str
    """The command that reproduces the run."""
    exit_status: int
    facts: dict[str, Any] = field(default_factory=dict)
    """Device, weights, samples and the like."""
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    """What tests attached: a node id, numbers and figures."""
    extra: dict[str, str] = field(default_factory=dict)
    """Text by title that the user's conftest.py adds (`pytest_diffusion_report_context`)."""
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @classmethod
    def of(cls, entries: Sequence[Entry], settings: Settings, **rest: Any) -> Report:
        """The report on entries in any order."""
        return cls(worst_first(entries), settings, **rest)

    @property
    def gate(self) -> Gate:
        """The state of the gate."""
        return gate_of((entry.verdict for entry in self.entries), exit_status=self.exit_status)

    @property
    def counts(self) -> dict[str, int]:
        """How many verdicts have each outcome."""
        return counts(self.entries)

    @property
    def shown_settings(self) -> dict[str, Any]:
        """Settings as plain values."""
        shown = {item.name: getattr(self.settings, item.name) for item in fields(self.settings) if item.name != "sources"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in shown.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `report.json` holds them."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "gate": self.gate,
            "exit_status": self.exit_status,
            "counts": self.counts,
            "command": self.command,
            "settings": self.shown_settings,
            "run": self.facts,
            "versions": self.versions,
            "verdicts": [entry.to_json() for entry in self.entries],
            "notes": self.notes,
            "extra": self.extra,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The report that `to_json` wrote. Raises ValueError for another schema."""
        if data.get("schema") != SCHEMA:
            raise ValueError(f"the report has schema {data.get('schema')!r}; this version reads {SCHEMA}.")
        known = {item.name for item in fields(Settings)} - {"sources"}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data["settings"].items() if name in known
        }
        return cls(
            [Entry.from_json(entry) for entry in data["verdicts"]],
            Settings(**values),
            str(data["command"]),
            int(data["exit_status"]),
            dict(data["run"]),
            dict(data["versions"]),
            list(data["notes"]),
            dict(data.get("extra", {})),
            str(data["created"]),
        )
