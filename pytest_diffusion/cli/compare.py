"""`pytest-diffusion compare A B`: two finished reports against each other, without any model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_OPEN, _CLOSED = 0, 1


def add_parser(commands: Any) -> None:
    """Add `compare` to the commands."""
    parser = commands.add_parser("compare", help="compare two reports; the exit code is 0 where nothing is worse and all is decided")
    parser.add_argument("baseline", metavar="BASELINE.json", help="the report of the model in production")
    parser.add_argument("candidate", metavar="CANDIDATE.json", help="the report of the model that may replace it")
    parser.add_argument("--thresholds", action="append", default=[], metavar="NAME", help="presets or files with the margins")
    parser.add_argument("--markdown", metavar="FILE", help="also append a table to this file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print one line for each figure, worst first. Raises SettingsError for a file that is no report."""
    from pytest_diffusion.config.thresholds import load_thresholds
    from pytest_diffusion.gate.unpaired import compare_measurements
    from pytest_diffusion.report.compared import comparison_table, worst_changes_first
    from pytest_diffusion.report.earlier import measurements_of

    candidate, baseline = measurements_of(Path(options.candidate)), measurements_of(Path(options.baseline))
    thresholds = load_thresholds(options.thresholds)
    changes = compare_measurements(candidate, baseline, thresholds.margins, strict=thresholds.inconclusive_fails)
    verdicts = worst_changes_first(changes)
    for verdict in verdicts:
        _say(f"{verdict.outcome:<13}{verdict.check:<28}{verdict.message}")
    judged = [verdict for verdict in verdicts if verdict.measurement is not None and verdict.measurement.relation]
    is_open = bool(judged) and not any(verdict.gates for verdict in verdicts)
    gate = "open" if is_open else "closed" if judged else "empty: no figure of the two can be compared"
    _say("")
    _say(
        "Unpaired: the two runs drew their samples apart, so only large changes can be told. Pairs need --diffusion-baseline with a model."
    )
    _say(f"{len(judged)} figures were judged; gate: {gate}")
    if options.markdown:
        with Path(options.markdown).open("a", encoding="utf-8") as file:
            file.write(comparison_table(verdicts))
    return _OPEN if is_open else _CLOSED


def _say(line: str) -> None:
    print(line)  # noqa: T201 - a command's output
