"""The command `pytest-diffusion`: baselines, comparisons, generation, thresholds and the cache. Each command has its module."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pytest_diffusion.cli import baseline, cache, compare, generate, thresholds
from pytest_diffusion.verdicts.errors import ModelError, SettingsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Known errors are one line and the status 2."""
    parser = argparse.ArgumentParser(
        prog="pytest-diffusion", description="Saved baselines, comparisons, generation, thresholds and the cache of pytest-diffusion."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (baseline, compare, generate, thresholds, cache):
        module.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (SettingsError, ModelError, ImportError) as error:
        print(f"pytest-diffusion: {error}", file=sys.stderr)  # noqa: T201 - a command's output
        return 2
