"""`pytest-diffusion history show|compare|plot FILE_OR_URL`: what earlier runs measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffusion.verdicts.errors import SettingsError, unknown_name
from pytest_diffusion.verdicts.text import with_interval

if TYPE_CHECKING:
    from pytest_diffusion.report.history import History, Run

_OK, _NOTHING = 0, 1


def add_parser(commands: Any) -> None:
    """Add `history` to the commands."""
    parser = commands.add_parser("history", help="runs and figures of a history (--diffusion-history)")
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="the runs, or with --check the figures of some checks, oldest first")
    compare = actions.add_parser("compare", help="the figures of two runs beside each other: by default the last release and the last run")
    plot = actions.add_parser("plot", help="a picture of figures over the runs")
    for one in (show, compare, plot):
        one.add_argument("history", metavar="FILE_OR_URL", help="an SQLite file, or its URL in an object store")
    for one in (show, plot):
        one.add_argument("--check", action="append", default=[], metavar="NAME", help="a check; may be given more than once")
    compare.add_argument("runs", nargs="*", metavar="RUN", help="two runs, by the beginning of their id or by their number in `show`")
    plot.add_argument("--to", default="history.png", metavar="FILE", help="a .png, .svg or .pdf (default: history.png)")
    show.set_defaults(run=run_show)
    compare.set_defaults(run=run_compare)
    plot.set_defaults(run=run_plot)


def run_show(options: argparse.Namespace) -> int:
    """One line for each run, or for each run and check. Raises SettingsError for a file that is no history."""
    history = _history(options.history)
    _require(history, options.check)
    for index, run in enumerate(history.runs, 1):
        if not options.check:
            commit = run.commit_id[:7] or "-"
            _say(f"{index:>4}  {run.id[:8]}  {run.created}  {run.gate:<10}  {commit:<7}  {len(run.verdicts):>3} figures  {run.subject}")
        for check in options.check:
            if check in run.verdicts:
                _say(f"{index:>4}  {run.id[:8]}  {run.created}  {run.gate:<10}  {check:<24}  {_figure(run, check)}")
    return _OK if history.runs else _NOTHING


def run_compare(options: argparse.Namespace) -> int:
    """One line for each figure of two runs: both values, their change with its interval, or why they cannot be compared."""
    from pytest_diffusion.verdicts.protocol import VERSIONS, ProtocolMismatchError, difference

    history = _history(options.history)
    if len(options.runs) not in (0, 2):
        raise SettingsError("history compare: give two runs, or none for the last release and the last run.")
    before, after = (_run(history, text) for text in options.runs) if options.runs else _last_two(history)
    told = [f"{run.created} ({run.subject}, {run.commit_id[:7] or run.id[:8]})" for run in (before, after)]
    _say(" against ".join(told))
    compared = 0
    for check in [name for name in after.verdicts if name in before.verdicts]:
        line = f"{check:<28}{_figure(before, check):<28}{_figure(after, check):<28}"
        try:
            change = difference(after.measurements[check], before.measurements[check], ignore=VERSIONS)
        except ProtocolMismatchError as error:
            _say(f"{line}{error}")
            continue
        compared += 1
        _say(f"{line}{with_interval(change.value, change.interval)}")
    return _OK if compared else _NOTHING


def run_plot(options: argparse.Namespace) -> int:
    """Write the picture. Raises SettingsError for a check that no run measured, and for another kind of file."""
    from pytest_diffusion.report.trend import plot

    if Path(options.to).suffix not in (".png", ".svg", ".pdf"):
        raise SettingsError(f"history plot: {options.to} does not end in .png, .svg or .pdf.")
    history = _history(options.history)
    _require(history, options.check)
    checks = options.check or sorted({name for run in history.runs for name, one in run.measurements.items() if one.interval is not None})
    if not checks:
        raise SettingsError(f"{options.history} holds no figure with an interval: name one with --check.")
    try:
        plot(history, checks).savefig(options.to)
    except OSError as error:
        raise SettingsError(f"history plot: {options.to} could not be written: {error}.") from None
    _say(options.to)
    return _OK


def _history(place: str) -> History:
    from pytest_diffusion.config.remote import is_url
    from pytest_diffusion.report.history import History

    if not is_url(place) and not Path(place).is_file():
        raise SettingsError(f"{place} does not exist.")
    return History(place)


def _require(history: History, checks: list[str]) -> None:
    known = sorted({name for run in history.runs for name in run.verdicts})
    for check in checks:
        if check not in known:
            raise SettingsError(unknown_name("the history's check", check, known))


def _last_two(history: History) -> tuple[Run, Run]:
    before = next((run for run in reversed(history.runs[:-1]) if run.is_release), None)
    if before is None:
        raise SettingsError(f"{history.place} holds no run with an open gate before its last run: name two runs.")
    return before, history.runs[-1]


def _run(history: History, text: str) -> Run:
    if text.isdecimal() and 1 <= int(text) <= len(history.runs):
        return history.runs[int(text) - 1]
    found = [run for run in history.runs if run.id.startswith(text)]
    if len(found) != 1:
        raise SettingsError(f"{history.place} holds {len(found) or 'no'} runs whose id begins with {text}; `history show` lists them.")
    return found[0]


def _figure(run: Run, check: str) -> str:
    found = run.measurements[check]
    return f"{with_interval(found.value, found.interval)} {found.unit}".rstrip()


def _say(line: str) -> None:
    print(line.rstrip())  # noqa: T201 - a command's output
