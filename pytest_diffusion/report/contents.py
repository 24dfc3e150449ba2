"""What a report says: verdicts worst first, facts of the run and what tests attached; JSON only when it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.verdicts.error_rates import ErrorRates, error_rates
from pytest_diffusion.verdicts.gate import Decision, Gate
from pytest_diffusion.verdicts.plain_json import plain
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.text import shown
from pytest_diffusion.verdicts.verdict import Outcome, Verdict

SCHEMA = 2
READABLE = (1, 2)
"""Schemas that are read: reports of version 0.1 have the first."""
OUTCOMES: tuple[Outcome, ...] = ("fail", "missing", "broken", "undersampled", "inconclusive", "reported", "skipped", "pass")
"""From the worst to the best."""


def worst_first(entries: Iterable[Entry]) -> list[Entry]:
    """Entries by outcome, worst first, otherwise in the order in which they came."""
    return sorted(entries, key=lambda entry: (not entry.verdict.gates, OUTCOMES.index(entry.verdict.outcome)))


def counts(entries: Iterable[Entry]) -> dict[str, int]:
    """How many verdicts have each outcome, worst first, without zeros."""
    found = Counter(entry.verdict.outcome for entry in entries)
    return {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}


def grouped(verdicts: Iterable[Verdict]) -> list[tuple[Verdict, list[str]]]:
    """Verdicts in their order; those of one outcome with one message stand once, with the names of their checks."""
    found: dict[tuple[str, str], tuple[Verdict, list[str]]] = {}
    for verdict in verdicts:
        found.setdefault((verdict.outcome, verdict.message), (verdict, []))[1].append(verdict.check)
    return list(found.values())


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    return shown(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Report:
    """All that a report says. `entries` come worst first."""

    entries: list[Entry]
    settings: Settings
    command: str
    """The command that reproduces the run."""
    decision: Decision
    """The gate, why, and what was left out."""
    expected: list[str] = field(default_factory=list)
    """Names of the checks that a whole run has."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Device, weights, samples and the like."""
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    """What tests attached: a node id, numbers and figures."""
    extra: dict[str, str] = field(default_factory=dict)
    """Text by title that the user's conftest.py adds (`pytest_diffusion_report_context`)."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def of(cls, decision: Decision, settings: Settings, **rest: Any) -> Report:
        """The report on a decision and its entries."""
        return cls(worst_first(decision.entries), settings, decision=decision, **rest)

    @property
    def gate(self) -> Gate:
        """The state of the gate."""
        return self.decision.gate

    @property
    def is_of_scheduler(self) -> bool:
        """Whether a scheduler was tried, and no model."""
        return self.settings.scheduler is not None and self.settings.model is None

    @property
    def closing(self) -> list[tuple[Verdict, list[str]]]:
        """Verdicts that close the gate, worst first; those with the same message stand once, with the names of their checks."""
        return grouped(entry.verdict for entry in self.entries if entry.verdict.gates)

    @property
    def undecided(self) -> list[tuple[Verdict, list[str]]]:
        """Verdicts that could not be decided and do not close the gate, grouped as in `closing`."""
        outcomes = ("inconclusive", "undersampled")
        return grouped(
            entry.verdict for entry in self.entries if entry.verdict.outcome in outcomes and not entry.verdict.gates and not entry.excused
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many verdicts have each outcome."""
        return counts(self.entries)

    @property
    def error_rates(self) -> ErrorRates | None:
        """How often a run would not open the gate by chance."""
        return error_rates(entry.verdict for entry in self.entries)

    @property
    def shown_settings(self) -> dict[str, Any]:
        """Settings as plain values, with credentials masked."""
        values = {item.name: getattr(self.settings, item.name) for item in fields(self.settings) if item.name != "sources"}
        return {name: _shown(value) for name, value in values.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `report.json` holds them."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            **self.decision.to_json(),
            "counts": self.counts,
            "error_rates": plain(rates.to_json()) if (rates := self.error_rates) is not None else None,
            "command": self.command,
            "expected": self.expected,
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
        if data.get("schema") not in READABLE:
            raise ValueError(f"the report has schema {data.get('schema')!r}; this version reads {' and '.join(map(str, READABLE))}.")
        known = {item.name for item in fields(Settings)} - {"sources"}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data["settings"].items() if name in known
        }
        code = data["exit_code"] if "exit_code" in data else data["exit_status"]
        decision = Decision(data["gate"], int(code), list(data.get("reasons", [])), list(data.get("left_out", [])))
        entries = [Entry.from_json(entry) for entry in data["verdicts"]]
        return cls(
            entries,
            Settings(**values),
            str(data["command"]),
            replace(decision, entries=entries),
            expected=list(data.get("expected", [])),
            facts=dict(data["run"]),
            versions=dict(data["versions"]),
            notes=list(data["notes"]),
            extra=dict(data.get("extra", {})),
            created=str(data["created"]),
        )
