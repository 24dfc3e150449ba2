"""The absolute checks on a pipeline that is in memory: a session of pytest of its own, with the options of the one that is running."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pytest_diffusion.config.cache import read_json
from pytest_diffusion.config.options import OPTIONS
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.verdicts.errors import SetupError
from pytest_diffusion.verdicts.plain_json import with_numbers

_NOT_ASKED = (
    *("baseline", "lora", "retention", "scorer", "subject", "slices", "max_samples", "selftest", "selftest_require"),
    *("report", "cache_dir", "history", "fail_on_drop"),
)
"""Options of the comparison, and of files."""
_LEFT_OUT = ("cacheprovider", "xdist", "faulthandler", "logging", "threadexception", "unraisableexception", "randomly")
"""Plugins that would reach beyond their session, or share this one with others."""


def absolute_verdicts(pipeline: Any, cache_dir: str) -> Callable[[Settings], list[dict[str, Any]]]:
    """A function that gives the verdicts of the checklist, as `report.json` holds them, on the pipeline as it is when it is called.

    Samples are kept in `cache_dir` alone while a session lasts. The function raises SetupError where a session leaves no report.
    """

    def ask(settings: Settings) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory(dir=cache_dir) as folder:
            report = Path(folder) / "report.html"
            arguments = [*_options(settings), f"--diffusion-report={report}", f"--diffusion-cache-dir={folder}/cache"]
            arguments += ["-c", os.devnull, f"--rootdir={folder}", folder, "-s", *(f"-pno:{name}" for name in _LEFT_OUT)]
            with _apart() as said:
                pytest.main(arguments, plugins=[_Given(pipeline)])
            found = read_json(report.with_suffix(".json"))
        if found is None or not found.get("verdicts"):
            last = next((line for line in reversed(said.getvalue().splitlines()) if line.strip()), "it said nothing")
            raise SetupError(f"--diffusion-selftest: no absolute check was run; the last line of their session: {last}")
        return [_short(one["verdict"] if "verdict" in one else one) for one in found["verdicts"]]

    return ask


class _Given:
    """A plugin that makes a pipeline in memory the one under test."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """Only now, because the fixture that is registered last is the one that is used."""
        session.config.pluginmanager.register(_Fixtures(self._pipeline), "diffusion-damaged-pipeline")


class _Fixtures:
    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    @pytest.fixture(scope="session")
    def diffusion_pipeline(self) -> Any:
        """The pipeline in memory."""
        return self._pipeline


@contextlib.contextmanager
def _apart() -> Iterator[io.StringIO]:
    """Nothing that a session reads or leaves in the environment concerns this one; what it writes is kept aside."""
    before = dict(os.environ)
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "GITHUB_STEP_SUMMARY"):
        os.environ.pop(name, None)
    try:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield said
    finally:
        os.environ.clear()
        os.environ.update(before)


def _options(settings: Settings) -> list[str]:
    """Settings as they are typed, but for those with their default."""
    plain, found = Settings(), list[str]()
    known = {item.name for item in fields(Settings)}
    for option in OPTIONS:
        value = getattr(settings, option.name)
        if option.name in _NOT_ASKED or option.name not in known or value == getattr(plain, option.name):
            continue
        if option.is_switch:
            found.append(option.flag)
        elif option.many:
            found += [f"{option.flag}={one}" for one in value]
        else:
            found.append(f"{option.flag}={','.join(value) if isinstance(value, tuple) else value}")
    return found


def _short(verdict: dict[str, Any]) -> dict[str, Any]:
    """What a self-test keeps of a verdict."""
    measurement, limits = verdict.get("measurement") or {}, verdict.get("limits") or {}
    return {
        "check": verdict["check"],
        "outcome": verdict["outcome"],
        **with_numbers({name: measurement.get(name) for name in ("value", "interval", "num_samples", "unit")}),
        **with_numbers({name: limits.get(name) for name in ("at_least", "at_most", "min_reference", "extractor")}),
    }
