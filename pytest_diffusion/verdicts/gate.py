"""The state of the gate and the exit code, decided in one place from what a run judged, promised, left out and how it ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Verdict

Gate = Literal["open", "amber", "partial", "empty", "closed", "unfinished"]
"""`open`: all was judged and nothing closes it. `amber`: open, and the thresholds let close calls through. `partial`: not all
checks were run. `empty`: nothing was judged. `unfinished`: the run was stopped. All but the first two are not open.
"""
BROKEN_SETUP = 10
"""Exit code where nothing failed, and the set-up was broken. pytest's own codes are below it."""
_UNJUDGED = ("skipped", "reported")
_PASSED, _FAILED, _NOTHING_COLLECTED = 0, 1, 5


@dataclass(frozen=True)
class Promise:
    """Something that a run was asked to judge, and who asked: a check, any check of a lens, or any figure against the reference."""

    kind: Literal["check", "lens", "reference"]
    name: str
    by: str
    """A file with its table, an option, or a preset."""
    is_presets: bool = False
    """Whether only a preset asked: what the user left out by a selection is then not missing, but the run is partial."""
    lens: str = ""
    """The lens of a check, where its verdict is shown."""

    def is_kept(self, entries: Collection[Entry]) -> bool:
        """Whether something of it was judged. What a broken set-up took down closes the gate by itself and is not missing too."""
        about = [entry for entry in entries if self._is_about(entry)]
        return (self.is_presets and not about) or any(entry.is_judged or entry.verdict.outcome == "broken" for entry in about)

    def missing(self, entries: Collection[Entry]) -> Verdict:
        """The verdict on a promise that was not kept, with the reason where there is one."""
        about = [entry for entry in entries if self._is_about(entry)]
        # A check that says why it has no verdict; for a lens and a reference the first one stands for the others.
        reason = about[0].verdict.message if about else ""
        what = {
            "check": "it was not judged",
            "lens": f"none of the checks of the lens {self.name} was judged",
            "reference": "no figure was held against the reference",
        }[self.kind]
        why = f": {reason}" if reason else ", since its test was not run." if self.kind == "check" else ", since none of them was run."
        message = f"{self.name} is required by {self.by}, but {what}{why}"
        verdict = about[0].verdict if self.kind == "check" and about else None
        lens = verdict.lens if verdict is not None else {"check": self.lens, "lens": self.name, "reference": "metrics"}[self.kind]
        title = verdict.title if verdict is not None else "What was promised is judged"
        measurement, limits = (verdict.measurement, verdict.limits) if verdict is not None else (None, None)
        return Verdict(self.name, "missing", message, measurement, limits, lens=lens, title=title)

    @property
    def nodeid(self) -> str:
        """The id of the item that should have kept it."""
        return f"diffusion::{self.name}"

    def _is_about(self, entry: Entry) -> bool:
        if self.kind == "check":
            return entry.verdict.check == self.name
        if self.kind == "lens":
            return entry.verdict.lens == self.name and entry.is_of_checklist
        return entry.uses_reference


@dataclass(frozen=True)
class Course:
    """How a run went, apart from its verdicts."""

    exit_status: int = 0
    """What pytest would end with."""
    expected: tuple[str, ...] = ()
    """Names of the checks that a whole run has; none where only tests of the user's were run."""
    selection: str = ""
    """How some of the tests were chosen: "-k fid"."""
    is_users_choice: bool = False
    """Whether the user typed the selection on the command line, so that leaving checks out is what was asked for."""
    stopped: str = ""
    """What stopped the run before its end."""
    failures: int = 0
    """Failed tests, and modules that could not be collected, that gave no verdict."""
    broken_report: str = ""
    """Why a report could not be written."""


@dataclass(frozen=True)
class Decision:
    """The gate, what to say about it, and the exit code."""

    gate: Gate
    exit_code: int
    reasons: list[str] = field(default_factory=list)
    """One sentence each; those of single verdicts stand with the verdicts."""
    left_out: list[str] = field(default_factory=list)
    """Checks of a whole run that were not run."""
    entries: list[Entry] = field(default_factory=list, compare=False)
    """All entries, those of missing checks included."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `report.json` holds them; the entries stand there as verdicts."""
        return {name: value for name, value in self.__dict__.items() if name != "entries"}


def with_missing(entries: Sequence[Entry], promises: Collection[Promise], *, skipped_fail_by: str = "") -> list[Entry]:
    """The entries, where each promise that was not kept has an entry `missing`, in place of the check's own if there is one.

    With `skipped_fail_by`, the file that says so, each check of the checklist that was skipped is missing too.
    """
    skips = {entry.verdict.check for entry in entries if entry.verdict.outcome == "skipped" and entry.is_of_checklist}
    every = [Promise("check", name, skipped_fail_by) for name in sorted(skips)] if skipped_fail_by else []
    found = list(entries)
    for promise in (*promises, *every):
        if promise.is_kept(found) or any(entry.nodeid == promise.nodeid and entry.verdict.outcome == "missing" for entry in found):
            continue
        gap = Entry(promise.missing(found), promise.nodeid)
        if promise.kind == "check":
            found = [entry for entry in found if entry.verdict.check != promise.name or entry.verdict.outcome not in _UNJUDGED]
        found.append(gap)
    return found


def decide(entries: Sequence[Entry], course: Course, promises: Collection[Promise] = (), *, skipped_fail_by: str = "") -> Decision:
    """The gate and the exit code from the entries of a run, what it promised, and its course."""
    run = {entry.verdict.check for entry in entries if entry.is_of_checklist}
    left_out = [name for name in course.expected if name not in run]
    entries = with_missing(entries, promises, skipped_fail_by=skipped_fail_by)
    excused = [entry for entry in entries if entry.excused]
    gating = [entry for entry in entries if entry.verdict.gates and not entry.excused]
    judged = [entry for entry in entries if entry.is_judged and (entry.is_of_checklist or not course.expected)]

    reasons = []
    if course.stopped:
        reasons.append(f"The run was stopped: {course.stopped}.")
    if course.failures:
        tests = "1 test" if course.failures == 1 else f"{course.failures} tests"
        reasons.append(f"{tests} that gave no verdict failed: pytest's own output says why.")
    if not judged:
        reasons.append("Nothing was judged: no figure was held against a limit.")
    if left_out:
        chosen = f" ({course.selection})" if course.selection else ""
        reasons.append(f"Partial: {len(course.expected) - len(left_out)} of {len(course.expected)} checks were run{chosen}.")
    for entry in excused:
        reasons.append(f"{entry.verdict.check} did not pass and was not counted ({entry.excused}).")
    if course.broken_report:
        reasons.append(course.broken_report)

    # What is only missing may have come, had the run gone on.
    seen = [entry for entry in gating if entry.verdict.outcome != "missing"]
    if (course.stopped or course.exit_status not in (_PASSED, _FAILED, _NOTHING_COLLECTED)) and not seen:
        gate: Gate = "unfinished"
    elif gating or course.failures or course.broken_report or course.exit_status == _FAILED:
        gate = "closed"
    elif not judged:
        gate = "empty"
    elif left_out or excused:
        gate = "partial"
    else:
        gate = "amber" if any(entry.verdict.outcome in ("inconclusive", "undersampled") for entry in judged) else "open"
    return Decision(gate, _exit_code(gate, gating, excused, course), reasons, left_out, entries)


def _exit_code(gate: Gate, gating: Sequence[Entry], excused: Sequence[Entry], course: Course) -> int:
    if course.exit_status not in (_PASSED, _FAILED, _NOTHING_COLLECTED):
        return course.exit_status
    if gate in ("open", "amber") or (gate == "partial" and course.selection and course.is_users_choice and not excused):
        return _PASSED
    is_setups_fault = gating and all(entry.verdict.is_setups_fault for entry in gating)
    return BROKEN_SETUP if is_setups_fault and not course.failures and not course.broken_report else _FAILED
