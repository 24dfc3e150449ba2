"""The command `pytest-diffusion`: baselines, comparisons, generation, thresholds, histories and the cache. Each command has its module."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pytest_diffusion.cli import baseline, cache, compare, generate, history, judge, thresholds
from pytest_diffusion.verdicts.errors import ModelError, SettingsError


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    found = argparse.ArgumentParser(
        prog="pytest-diffusion",
        description="Baselines, comparisons, verdicts, generation, thresholds, histories and the cache.",
    )
    commands = found.add_subparsers(dest="command", required=True)
    for module in (baseline, compare, judge, generate, thresholds, history, cache):
        module.add_parser(commands)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Known errors are one line and the status 2."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (SettingsError, ModelError, ImportError) as error:
        print(f"pytest-diffusion: {error}", file=sys.stderr)  # noqa: T201 - a command's output
        return 2
