"""The course of a run: what stands in the report until it ends, signals that end it, and the exit code when it is over."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from types import FrameType
from typing import Any, NoReturn

import pytest

from pytest_diffusion.plugin.stash import GENERATION, REPORT_FILES, ini_value, is_given

_ONLY_SHOWN = (
    *("diffusion_plan", "collectonly", "help", "version", "showfixtures", "show_fixtures_per_test", "markers", "cacheshow", "setupplan"),
)
"""Options of pytest under which no test is run: they leave a report as it is."""


def runs_tests(options: argparse.Namespace) -> bool:
    """Whether pytest runs tests with these options, and does not only show something."""
    return not any(getattr(options, name, None) for name in _ONLY_SHOWN)


def begin(early_config: pytest.Config) -> None:
    """Where a report will be written, let it say that this run has not ended. Workers of xdist, which start later, say so too."""
    options = early_config.known_args_namespace
    if not runs_tests(options) or early_config.pluginmanager.hasplugin(GENERATION):
        return
    values = {
        name: getattr(options, f"diffusion_{name}", None) or ini_value(early_config, name)
        for name in ("model", "scheduler", "report", "baseline", "lora")
    }
    values["model"] = values["model"] or (values["lora"] and values["baseline"])
    if not values["model"] and not values["scheduler"] and not getattr(options, "diffusion_report", None):
        return
    from pytest_diffusion.config.settings import Settings
    from pytest_diffusion.report.write import ReportFiles

    files = ReportFiles(early_config.invocation_params.dir / str(values["report"] or Settings.report))
    files.say_unfinished("Running, or not finished", f"A run began in process {os.getpid()} and has not ended. There is no verdict yet.")
    early_config.stash[REPORT_FILES] = files


def watch(config: pytest.Config) -> None:
    """End the run in order when the process is asked to terminate, so that samples are kept and the report is true."""
    if REPORT_FILES not in config.stash or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
        config.add_cleanup(_restore)


def _restore() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # The code that pytest gives to Ctrl-C, with which it prints its summary.
    raise pytest.exit.Exception("SIGTERM: the process was asked to end", returncode=pytest.ExitCode.INTERRUPTED)


def end(config: pytest.Config) -> None:
    """Let the report of a run without a verdict say that it was not finished."""
    files = None if hasattr(config, "workerinput") else config.stash.get(REPORT_FILES, None)
    if files is not None and not files.is_ended:
        files.say_unfinished("Not finished", "The run ended without a verdict. Its output says why; samples that were drawn are kept.")


def exit_code(config: pytest.Config, code: Any) -> Any:
    """The exit code of pytest's main function: never 0 for a run with a model or a scheduler whose gate was not decided to be so."""
    if code not in (None, 0) or REPORT_FILES not in config.stash or not is_given(config, "model", "scheduler"):
        return code
    reporter = config.pluginmanager.getplugin("diffusion-reporter")
    decision = getattr(reporter, "decision", None)
    return decision.exit_code if decision is not None else 1
