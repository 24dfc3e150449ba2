"""The history in a run: read before the verdicts, for drops and trends, and written after them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.verdicts.errors import SettingsError, SetupError, unknown_name
from pytest_diffusion.verdicts.run import Entry


def check_history(settings: Settings) -> None:
    """Raise SettingsError, before anything is run, for a history that cannot be used and for a drop of what is no figure."""
    if settings.fail_on_drop and settings.history is None:
        raise SettingsError("--diffusion-fail-on-drop needs --diffusion-history=FILE_OR_URL: it compares with the last release there.")
    if settings.history is None:
        return
    if settings.model is None and settings.scheduler is None:
        raise SettingsError("--diffusion-history needs --diffusion-model or --diffusion-scheduler: it keeps the figures of the checklist.")
    from pytest_diffusion.report.history import History

    try:
        History.require(settings.history)
    except SetupError as error:
        raise SettingsError(str(error)) from None
    if settings.fail_on_drop:
        from pytest_diffusion.checks import all_checks
        from pytest_diffusion.config.parsers import drop
        from pytest_diffusion.conformance.suite import all_laws

        lenses = (*settings.lenses, "always") if settings.lenses else None
        checks = [one.name for one in all_checks() if lenses is None or one.lens in lenses]
        names = checks if settings.model is not None else [one.name for one in all_laws()]
        known = sorted({name for name in names if not name.startswith("paired_")})
        for name, _, _ in map(drop, settings.fail_on_drop):
            if name.startswith("paired_"):
                raise SettingsError(f"--diffusion-fail-on-drop: {name} is a change against the baseline, not a figure of this model.")
            if name not in known:
                raise SettingsError(unknown_name("--diffusion-fail-on-drop: the check", name, known))


class RunHistory:
    """The history of one run: what came before it, and the errors of reading and writing it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        from pytest_diffusion.report.history import History

        self._settings, self._folder = settings, folder
        self.errors: list[str] = []
        self._history: History | None = None
        if settings.history is not None:
            try:
                self._history = History(settings.history)
            except SettingsError as error:
                self.errors.append(str(error))

    def drops(self, entries: Sequence[Entry], *, strict: bool) -> list[Entry]:
        """The verdicts of `--diffusion-fail-on-drop`."""
        if not self._settings.fail_on_drop:
            return []
        from pytest_diffusion.gate.drops import Release, drop_verdicts

        def figure(check: str) -> Release | None:
            release = self._history.last_release_with(check) if self._history is not None else None
            if release is None:
                return None
            named = ", ".join(filter(None, (release.subject, release.commit_id[:7])))
            return release.measurements[check], f"the release of {release.created[:10]} ({named})"

        own = {entry.verdict.check: entry.verdict for entry in entries if entry.is_of_checklist}
        found = drop_verdicts(self._settings.fail_on_drop, own, figure, strict=strict)
        return [Entry(verdict, f"diffusion::{verdict.check}") for verdict in found]

    def facts(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """The trend of each figure of this run and the last release, as plain values for the report; empty without a history."""
        if self._history is None:
            return {}
        from pytest_diffusion.report.trend import trend_facts

        return {"history": trend_facts(self._history, [entry.verdict for entry in entries if entry.is_of_checklist])}

    def add(self, report: Any) -> list[str]:
        """Write the run into the history; returns why it could not be written."""
        if self._history is not None and not self.errors:
            from pytest_diffusion.report.history import Run, commit_of

            try:
                self._history.add(Run.of(report, commit_of(self._folder)))
            except (SettingsError, SetupError) as error:
                self.errors.append(str(error))
        return self.errors
