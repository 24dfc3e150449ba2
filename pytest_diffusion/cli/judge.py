"""`pytest-diffusion judge FIGURES.json`: limits held against figures that another tool computed, or that an earlier run measured."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffusion.verdicts.errors import SettingsError, unknown_name

if TYPE_CHECKING:
    from pytest_diffusion.verdicts.verdict import Measurement, Verdict

_KEYS = ("value", "interval", "exact", "num_samples", "num_reference", "unit", "extractor", "protocol")


def add_parser(commands: Any) -> None:
    """Add `judge` to the commands."""
    parser = commands.add_parser("judge", help="hold limits against figures of another tool; the exit code is that of a gate")
    parser.add_argument("figures", metavar="FIGURES.json", help="figures by check, or a report.json")
    parser.add_argument("--thresholds", action="append", required=True, metavar="NAME", help="presets or files with the limits")
    parser.add_argument("--json", metavar="FILE", help="also write the decision and the verdicts to this file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print one line for each figure, worst first, and the gate; returns the gate's exit code. Raises SettingsError for a bad file."""
    from pytest_diffusion.checks.promises import promises_of
    from pytest_diffusion.config.settings import Settings
    from pytest_diffusion.config.thresholds import load_thresholds
    from pytest_diffusion.report.contents import worst_first
    from pytest_diffusion.verdicts.gate import Course, decide
    from pytest_diffusion.verdicts.run import Entry
    from pytest_diffusion.verdicts.verdict import judge

    thresholds = load_thresholds(options.thresholds)
    strict = thresholds.inconclusive_fails
    found, kept, expected = figures_of(Path(options.figures))
    verdicts = [judge(name, one, thresholds.for_check(name), strict=strict, raised_by="") for name, one in found.items()]
    entries = [Entry(verdict, f"diffusion::{verdict.check}") for verdict in (*verdicts, *kept)]
    decision = decide(entries, Course(expected=expected), promises_of(Settings(), thresholds))
    shown = worst_first(decision.entries)
    for entry in shown:
        _say(f"{entry.verdict.outcome:<13}{entry.verdict.check:<24}{entry.verdict.message}")
    for reason in decision.reasons:
        _say(reason)
    _say(f"gate: {decision.gate}")
    if options.json:
        content = {**decision.to_json(), "verdicts": [entry.to_json() for entry in shown]}
        try:
            Path(options.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--json: {options.json} could not be written: {error}.") from None
    return decision.exit_code


def figures_of(path: Path) -> tuple[dict[str, Measurement], list[Verdict], tuple[str, ...]]:
    """The figures of a file by check. Raises SettingsError, with the figure's name, for whatever is wrong.

    Of a report also the verdicts without a figure, which other limits do not mend (broken, missing, skipped), and the names of the
    checks that a whole run has.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is no JSON file: {error}.") from None
    if isinstance(data, dict) and "verdicts" in data:
        from pytest_diffusion.report.earlier import measurements_of, report_of

        report = report_of(path)
        kept = [entry.verdict for entry in report.entries if entry.is_of_checklist and entry.verdict.measurement is None]
        return measurements_of(path), kept, tuple(report.expected)
    if not isinstance(data, dict) or not data:
        raise SettingsError(f'{path} holds no figures; expected an object, as {{"fid": {{"value": 12.3, "interval": [11.9, 12.7], ...}}}}.')
    for name in data:
        if not name.isidentifier():
            raise SettingsError(f"{path}: {name!a} is no name of a check.")
    return {name: _measurement(f"{path} [{name}]", name, figure) for name, figure in data.items()}, [], ()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each of whose keys stands there once: the last of two would hide the first."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _measurement(where: str, name: str, figure: Any) -> Measurement:
    from pytest_diffusion.verdicts.verdict import Measurement

    if not isinstance(figure, dict):
        raise SettingsError(f"{where} is {figure!r}; expected an object with value, interval and num_samples.")
    for key in figure:
        if key not in _KEYS:
            raise SettingsError(f"{where}: {unknown_name('the entry', key, _KEYS)}")
    value, is_exact = _number(where, figure, "value"), figure.get("exact", False)
    if not isinstance(is_exact, bool):
        raise SettingsError(f"{where}: exact is {is_exact!r}; expected true or false.")
    interval = figure.get("interval")
    if interval is None and not is_exact:
        raise SettingsError(f'{where} has no interval: a figure of samples needs its 95 % interval, one without chance "exact": true.')
    if interval is not None and is_exact:
        raise SettingsError(f"{where} has an interval and is called exact.")
    counts = {key: _count(where, figure, key) for key in ("num_samples", "num_reference")}
    if counts["num_samples"] is None and not is_exact:
        raise SettingsError(f"{where} has no num_samples: the number of samples that it was measured on.")
    protocol = figure.get("protocol", {})
    if not isinstance(protocol, dict):
        raise SettingsError(f"{where}: protocol is {protocol!r}; expected an object.")
    if "extractor" in figure:
        protocol = {**protocol, "extractor": str(figure["extractor"])}
    ends = _interval(where, interval, value) if interval is not None else None
    return Measurement(value, name, str(figure.get("unit", "")), ends, counts["num_samples"], counts["num_reference"], protocol)


def _number(where: str, figure: Mapping[str, Any], key: str) -> float:
    value = figure.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError(f"{where}: {key} is {value!r}; expected a number.")
    try:
        return float(value)
    except OverflowError:
        raise SettingsError(f"{where}: {key} is too large.") from None


def _count(where: str, figure: Mapping[str, Any], key: str) -> int | None:
    value = figure.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SettingsError(f"{where}: {key} is {value!r}; expected a whole number of at least 1.")
    return value


def _interval(where: str, given: Any, value: float) -> tuple[float, float]:
    if not isinstance(given, list) or len(given) != 2:
        raise SettingsError(f"{where}: interval is {given!r}; expected two numbers, [low, high].")
    low, high = (_number(where, {"interval": end}, "interval") for end in given)
    if not low <= value <= high and not math.isnan(value):
        raise SettingsError(f"{where}: the value {value:g} does not lie in its interval [{low:g}, {high:g}].")
    return low, high


def _say(line: str) -> None:
    print(line.rstrip())  # noqa: T201 - a command's output
