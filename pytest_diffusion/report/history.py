"""The history: the figures of all runs in one SQLite file, which may lie in an object store, and the last release among them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pytest_diffusion.config.cache import checksum
from pytest_diffusion.config.remote import is_url
from pytest_diffusion.config.remote_files import read_url, require_place, write_url
from pytest_diffusion.report.contents import Report
from pytest_diffusion.verdicts.errors import SettingsError
from pytest_diffusion.verdicts.plain_json import plain
from pytest_diffusion.verdicts.protocol import CHANGES
from pytest_diffusion.verdicts.text import shown
from pytest_diffusion.verdicts.verdict import Measurement, Verdict

FLAG = "--diffusion-history"
_VERSION, _MAGIC, _WAIT, _TRIES = 1, b"SQLite format 3\x00", 30.0, 5
_TABLES = """
CREATE TABLE runs (id TEXT PRIMARY KEY, created TEXT, gate TEXT, exit_code INTEGER, subject TEXT, weights TEXT, commit_id TEXT,
  device TEXT, version TEXT, command TEXT);
CREATE TABLE figures (run TEXT REFERENCES runs (id), check_name TEXT, protocol TEXT, outcome TEXT, value REAL, low REAL, high REAL,
  measurement TEXT, limits TEXT, PRIMARY KEY (run, check_name));
"""
_COLUMNS = ("id", "created", "gate", "exit_code", "subject", "weights", "commit_id", "device", "version", "command")
_COMMITS = ("GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT")
"""Variables in which GitHub, GitLab and Jenkins name the commit of a job."""


@dataclass(frozen=True)
class Run:
    """One run of the history: what was tested, when, of which commit, and its verdicts by check."""

    id: str
    created: str
    gate: str
    exit_code: int
    subject: str
    weights: str
    commit_id: str
    device: str
    version: str
    command: str
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def is_release(self) -> bool:
        """Whether its gate was open, so that it may have been shipped."""
        return self.gate in ("open", "amber")

    @property
    def measurements(self) -> dict[str, Measurement]:
        """Its figures by check."""
        return {check: verdict.measurement for check, verdict in self.verdicts.items() if verdict.measurement is not None}

    @classmethod
    def of(cls, report: Report, commit: str) -> Run:
        """The run of a report: the checks of the checklist that measured something."""
        settings, facts = report.shown_settings, report.facts
        own = [entry.verdict for entry in report.entries if entry.is_of_checklist and not entry.of_run]
        return cls(
            uuid.uuid4().hex,
            report.created,
            report.gate,
            report.decision.exit_code,
            str(settings.get("lora") or settings.get("model") or settings.get("scheduler") or "your own pipeline"),
            str(facts.get("weights", "")),
            commit,
            str(facts.get("device", "")),
            report.versions.get("pytest-diffusion", ""),
            report.command,
            {one.check: one for one in own if one.measurement is not None and not one.check.startswith(CHANGES)},
        )


class History:
    """The runs of a file or URL. Raises SettingsError, with the option, where it cannot be read or is no history."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.runs = self._read()

    @staticmethod
    def require(place: str) -> None:
        """Raise SettingsError or SetupError where a history could not be written there: before a run, not at its end."""
        if is_url(place):
            require_place(place, FLAG)
        else:
            folder = Path(place).expanduser().absolute().parent
            if not folder.is_dir():
                raise SettingsError(f"{FLAG}: the folder {folder} does not exist; make it, or name a file in another one.")
            if not os.access(folder, os.W_OK):
                raise SettingsError(f"{FLAG}: the folder {folder} cannot be written to.")
        History(place)

    @property
    def last_release(self) -> Run | None:
        """The last run whose gate was open."""
        return next((run for run in reversed(self.runs) if run.is_release), None)

    def last_release_with(self, check: str) -> Run | None:
        """The last run with an open gate that measured a check: jobs of other lenses may write into the same history."""
        return next((run for run in reversed(self.runs) if run.is_release and check in run.measurements), None)

    def earlier(self, check: str, measurement: Measurement) -> list[tuple[Run, Measurement]]:
        """Runs in which the check was measured in the same way, oldest first. What was measured otherwise cannot be compared."""
        own = protocol_key(measurement)
        return [(run, found) for run in self.runs if (found := run.measurements.get(check)) is not None and protocol_key(found) == own]

    def add(self, run: Run) -> None:
        """Write a run behind the others; in an object store it is looked for again, and written again where another job was between."""
        if not is_url(self.place):
            with _errors(self.place), closing(_opened(Path(self.place).expanduser())) as file:
                _insert(file, run)
        else:
            for _ in range(_TRIES):
                with _downloaded(self.place) as path:
                    with _errors(self.place), closing(_opened(path)) as file:
                        _insert(file, run)
                    write_url(self.place, path.read_bytes(), FLAG)
                if any(one.id == run.id for one in self._read()):
                    break
            else:
                raise SettingsError(f"{FLAG}: {shown(self.place)} was written by other jobs {_TRIES} times, and this run is not in it.")
        self.runs = self._read()

    def _read(self) -> list[Run]:
        if is_url(self.place):
            with _downloaded(self.place) as path:
                return _runs(path, self.place)
        return _runs(Path(self.place).expanduser(), self.place)


def protocol_key(measurement: Measurement) -> str:
    """A short name of all that a figure was measured with: two figures with other names are never joined by a line."""
    counts = [measurement.name, measurement.unit, measurement.num_samples, measurement.num_reference]
    return checksum(json.dumps([counts, plain(measurement.protocol)], sort_keys=True), size=6)


def commit_of(folder: Path) -> str:
    """The commit that is tested: as the CI job names it, else git's; empty outside a repository."""
    named = next((os.environ[name] for name in _COMMITS if os.environ.get(name)), "")
    if named:
        return named
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "rev-parse", "HEAD"]  # as the PATH has it
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
        return found.stdout.strip() if found.returncode == 0 else ""
    return ""


def _insert(file: sqlite3.Connection, run: Run) -> None:
    with file:
        places = ",".join("?" * len(_COLUMNS))
        file.execute(f"INSERT OR IGNORE INTO runs VALUES ({places})", [getattr(run, name) for name in _COLUMNS])  # noqa: S608 - our own names
        for check, verdict in run.verdicts.items():
            found = verdict.measurement
            assert found is not None
            low, high = found.interval or (None, None)
            kept = {name: value for name, value in verdict.to_json()["measurement"].items() if name != "series"}
            limits = verdict.to_json()["limits"]
            row = (run.id, check, protocol_key(found), verdict.outcome, found.value, low, high, json.dumps(kept), json.dumps(limits))
            file.execute("INSERT OR IGNORE INTO figures VALUES (?,?,?,?,?,?,?,?,?)", row)


def _runs(path: Path, place: str) -> list[Run]:
    if not path.exists() or not path.stat().st_size:
        return []
    with _errors(place), closing(_opened(path, reads=True)) as file:
        verdicts: dict[str, dict[str, Verdict]] = {}
        for run, check, outcome, measurement, limits in file.execute("SELECT run, check_name, outcome, measurement, limits FROM figures"):
            data = {"check": check, "outcome": outcome, "message": "", "measurement": json.loads(measurement), "limits": json.loads(limits)}
            verdicts.setdefault(run, {})[check] = Verdict.from_json(data)
        rows = file.execute(f"SELECT {', '.join(_COLUMNS)} FROM runs ORDER BY created, rowid").fetchall()  # noqa: S608 - our own names
        return [Run(**dict(zip(_COLUMNS, row, strict=True)), verdicts=verdicts.get(row[0], {})) for row in rows]


def _opened(path: Path, *, reads: bool = False) -> sqlite3.Connection:
    """The file, made where there is none, unless it is only read. Its journal lies beside it while a run is written; others wait."""
    if path.exists() and path.stat().st_size and not _is_sqlite(path):
        raise ValueError("it is no SQLite file")
    file = sqlite3.connect(f"{path.absolute().as_uri()}?mode={'ro' if reads else 'rwc'}", timeout=_WAIT, uri=True)
    try:
        with file:
            if not reads:
                file.execute("BEGIN IMMEDIATE")
            version = file.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not reads and not file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in filter(str.strip, _TABLES.split(";")):
                    file.execute(statement)
                file.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise ValueError(f"it is no history of this version ({_VERSION}): its version is {version}")
    except BaseException:
        file.close()
        raise
    return file


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


@contextmanager
def _errors(place: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{FLAG}: {shown(place)} cannot be used: {error}.") from None


@contextmanager
def _downloaded(url: str) -> Iterator[Path]:
    """A copy of the store's file in a folder that is gone afterwards; an empty one where the store has none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history.sqlite"
        if data := read_url(url, FLAG, missing=b""):
            path.write_bytes(data)
        yield path
