"""The built-in checklist as pytest items, one for each check, beside whatever tests the user has."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any
from unittest import SkipTest

import pytest

from pytest_diffusion.checks import Check, all_checks
from pytest_diffusion.checks.promises import SELFTEST, promises_of
from pytest_diffusion.checks.run import enforce, run_check
from pytest_diffusion.config.settings import Settings, baseline_kind
from pytest_diffusion.plugin.overrides import place_of_checklist
from pytest_diffusion.plugin.selection import chosen_checks
from pytest_diffusion.plugin.stash import RUN, SAID, active_settings
from pytest_diffusion.verdicts.errors import InconclusiveFailure, QualityFailure, SettingsError, SetupError
from pytest_diffusion.verdicts.recording import record
from pytest_diffusion.verdicts.verdict import Verdict, broken, skipped


class Checklist(pytest.Collector):
    """Collector of the checks that the chosen lenses ask for. It is collected last, when every override is known."""

    settings: Settings
    is_placed = False

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        assert self.parent is not None
        place = self.parent if self.is_placed else place_of_checklist(self.parent)
        if place is not self.parent:
            yield _placed(place, self.settings)
            return
        try:
            checks = _checks_of(self.settings)
            chosen = chosen_checks(self.config, [check.name for check in checks])
        except SettingsError as error:
            raise self.CollectError(str(error)) from None
        for check in checks:
            if _is_wanted(check, self.settings) and check.name in chosen:
                yield CheckItem.from_parent(self, name=check.name, callobj=_body(check), check=check)


class CheckItem(pytest.Function):
    """One check: its parameters are fixtures, its outcome is a verdict."""

    def __init__(self, *, check: Check, **rest: Any) -> None:
        super().__init__(**rest)
        self.check = check
        self.add_marker("diffusion")
        self.extra_keyword_matches.add(check.lens)

    def setup(self) -> None:
        try:
            self._skip_where_nothing_differs()
            super().setup()
        except (pytest.skip.Exception, SkipTest) as reason:
            # The message of pytest's own exception stands in its attribute.
            text = str(getattr(reason, "msg", None) or reason)
            record(skipped(self.check.name, text, lens=self.check.lens, title=self.check.title))
            raise
        except (Exception, pytest.fail.Exception) as error:
            verdict = self._broken(error)
            record(verdict)
            first = self.config.stash.setdefault(SAID, {}).setdefault(verdict.message, self.name)
            if first != self.name:
                shown = f"{self.name} could not be measured, for the same reason as {first}."
                raise pytest.fail.Exception(shown, pytrace=False) from None
            raise
        self._promise(self.funcargs["diffusion_thresholds"])

    def _skip_where_nothing_differs(self) -> None:
        """A candidate that equals its baseline is what is in production already: only what the user asked for is judged again."""
        settings, thresholds = active_settings(self.config)
        if settings.baseline is None or self.check.lens == "paired" or baseline_kind(settings.baseline) == "report":
            return
        if self.check.name == SELFTEST:
            return
        own = [promise for promise in promises_of(settings, thresholds) if not promise.is_presets and promise.kind != "reference"]
        if any(self.check.name == promise.name or self.check.lens == promise.name for promise in own):
            return
        if self._request.getfixturevalue("diffusion_comparison").is_identical:
            pytest.skip("nothing differs from the baseline, and only what is asked for by name is judged again.")

    def _promise(self, thresholds: Any) -> None:
        """What these thresholds promise, for the gate: they may be chosen by the model's family, or be the user's own fixture."""
        promises = [list(astuple(promise)) for promise in promises_of(active_settings(self.config)[0], thresholds)]
        self.config.stash.setdefault(RUN, {}).update(promises=promises, skipped_fail_by=thresholds.skipped_fail_by)

    def runtest(self) -> None:
        try:
            super().runtest()
        except QualityFailure:
            raise
        except SkipTest as reason:
            record(skipped(self.check.name, str(reason), lens=self.check.lens, title=self.check.title))
            raise
        except (Exception, pytest.fail.Exception) as error:
            verdict = self._broken(error)
            record(verdict)
            raise InconclusiveFailure(verdict) from error

    def _broken(self, error: BaseException) -> Verdict:
        """Nothing was measured, so nothing is passed or failed; the gate does not open."""
        cause = getattr(error, "error", error)
        reason = str(error.msg) if isinstance(error, pytest.fail.Exception) else f"{type(error).__name__}: {error}"
        is_setups_fault = isinstance(cause, SetupError | SettingsError | ImportError)
        return broken(self.check.name, reason, lens=self.check.lens, title=self.check.title, is_setups_fault=is_setups_fault)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message alone: a verdict needs no traceback. An error inside a check shows its own."""
        error = excinfo.value
        if isinstance(error, QualityFailure) and error.__cause__ is None:
            return error.verdict.message
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int, str]:
        return self.path, 0, f"{self.check.lens}: {self.check.name}"


def checklist_of(session: pytest.Session, collected: Sequence[pytest.Item | pytest.Collector], settings: Settings) -> Checklist:
    """The checklist, placed in the deepest folder that holds all that was collected.

    There it sees the fixtures of every conftest.py that all the user's own tests see.
    """
    chains = [[node for node in item.listchain() if isinstance(node, pytest.Directory)] for item in collected]
    common: list[pytest.Directory] = chains[0] if chains else []
    for chain in chains[1:]:
        common = [node for node, other in zip(common, chain, strict=False) if node is other]
    parent: pytest.Collector = common[-1] if common else session
    return _placed(parent, settings, is_final=False)


def _placed(parent: pytest.Collector, settings: Settings, *, is_final: bool = True) -> Checklist:
    checklist: Checklist = Checklist.from_parent(parent, name="diffusion", nodeid="diffusion")
    checklist.settings, checklist.is_placed = settings, is_final
    return checklist


def expected_checks(settings: Settings) -> list[str]:
    """Names of the checks of a whole run with these settings."""
    return [check.name for check in _checks_of(settings) if _is_wanted(check, settings)]


def _checks_of(settings: Settings) -> list[Check]:
    """All checks, those of the scorers and slices that the user names, and the self-test where it is asked for."""
    added: list[Check] = []
    if settings.scorer or settings.slices:
        from pytest_diffusion.gate.checks import scorer_checks
        from pytest_diffusion.gate.slice_checks import slice_checks

        added += [*scorer_checks(settings.scorer), *(slice_checks() if settings.slices else [])]
    if settings.selftest is not None or settings.selftest_require:
        from pytest_diffusion.gate.selftest_check import selftest_checks

        added += selftest_checks(settings)
    return [*all_checks(), *added]


_ASKED = {"paired_lora": ("lora",), "paired_retention_loss": ("retention",), "paired_retention_by_slice": ("retention",)}
"""Options without which a check has nothing to look at, so that it is not collected."""


def _is_wanted(check: Check, settings: Settings) -> bool:
    if check.lens == "paired" and (
        settings.baseline is None
        or baseline_kind(settings.baseline) == "report"
        or any(not getattr(settings, name) for name in _ASKED.get(check.name, ()))
    ):
        return False
    if settings.lenses is None or check.name == SELFTEST:
        return True
    # What holds always needs the model: a run of the schedule alone must not load it, and pairs are judged by themselves.
    return check.lens in settings.lenses or (check.lens == "always" and not set(settings.lenses) <= {"schedule", "paired"})


def _body(check: Check) -> Any:
    """A test function whose parameters are the check's fixtures."""
    fixtures = check.fixtures

    def body(**values: Any) -> None:
        __tracebackhide__ = True
        thresholds = values["diffusion_thresholds"]
        verdict = run_check(check, {name: values[fixture] for name, fixture in fixtures.items()}, thresholds)
        enforce(verdict)
        if verdict.outcome != "pass":
            pytest.skip(verdict.message)

    # References first: where none is given, that is the reason to skip, before anything is generated for nothing.
    names = dict.fromkeys(["diffusion_thresholds", *sorted(fixtures.values(), key=lambda name: "reference" not in name)])
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    body.__name__, body.__doc__ = check.name, check.function.__doc__
    return body
