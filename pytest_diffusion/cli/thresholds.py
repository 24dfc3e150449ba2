"""`pytest-diffusion thresholds suggest REPORT.json`: a thresholds file from what a self-test measured on a model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_diffusion.verdicts.errors import SettingsError
from pytest_diffusion.verdicts.text import number


def add_parser(commands: Any) -> None:
    """Add `thresholds suggest` to the commands."""
    parser = commands.add_parser("thresholds", help="limits and margins for a model of your own")
    actions = parser.add_subparsers(dest="action", required=True)
    suggest = actions.add_parser("suggest", help="write a thresholds file from the report of a run with --diffusion-selftest=full")
    suggest.add_argument("report", metavar="REPORT.json", help="the report of that run")
    suggest.add_argument("--to", metavar="FILE.toml", help="a new file to write (default: print it)")
    suggest.set_defaults(run=_suggest)


def _suggest(options: argparse.Namespace) -> int:
    from pytest_diffusion.report.earlier import report_of

    path = Path(options.report)
    test = report_of(path).facts.get("selftest")
    if test is None:
        raise SettingsError(f"{path} holds no self-test; run pytest with --diffusion-selftest=full.")
    tables = [*_margins(test), *_limits(test)]
    if not tables:
        raise SettingsError(
            f"{path} holds a self-test ({test['level']}) with too few sound changes to derive anything from; a full one has more."
        )
    head = [
        f"# Suggested from the self-test ({test['level']}) of {test['model']} on {test['created'][:10]}.",
        "# Read each source before you use it. Name this file last: --diffusion-thresholds=PRESET --diffusion-thresholds=FILE",
    ]
    text = "\n\n".join(["\n".join(head), *tables]) + "\n"
    if not options.to:
        sys.stdout.write(text)
        return 0
    try:
        with Path(options.to).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SettingsError(f"{options.to} is there already; name a new file.") from None
    except OSError as error:
        raise SettingsError(f"{options.to} cannot be written: {error.strerror}.") from None
    return 0


def _margins(test: Mapping[str, Any]) -> Iterator[str]:
    for one in test["suggested"]:
        if one["kept"]:
            continue  # the preset's holds
        kind = 'kind = "equivalence"\n' if test["is_copy"] or one["direction"] == 0 else ""
        source = (
            f"measured on {test['model']} on {test['created'][:10]}: sound changes up to {number(one['largest'])} ({one['by']}), "
            f"noise floor {number(one['floor'])}, times {one['factor']:g}; {_seen(one['seen'])}"
        )
        yield f"[paired.{one['figure']}]\nmargin = {float(one['margin'])!r}\n{kind}source = {json.dumps(source, ensure_ascii=False)}"


def _limits(test: Mapping[str, Any]) -> Iterator[str]:
    by_check: dict[str, list[Mapping[str, Any]]] = {}
    for one in test.get("suggested_limits", []):
        by_check.setdefault(one["check"], []).append(one)
    for check, sides in by_check.items():
        first = sides[0]
        lines = [f"[{check}]", *(f"{one['side']} = {float(one['limit'])!r}" for one in sides)]
        lines += [f"extractor = {json.dumps(first['extractor'])}"] if first["extractor"] else []
        lines += [f"min_samples = {first['samples']}"] if first["samples"] else []
        lines += [f"min_reference = {first['min_reference']}"] if first["min_reference"] else []
        told = "; ".join(f"sound to {number(one['worst'])} ({one['by']}); {_seen(one['seen'])}" for one in sides)
        source = f"measured on {test['model']} on {test['created'][:10]}: {number(first['parent'])}, {told}"
        yield "\n".join([*lines, f"source = {json.dumps(source, ensure_ascii=False)}"])


def _seen(damages: list[str]) -> str:
    return f"beyond it: {', '.join(damages)}" if damages else "none of the damage that was tried lies beyond it"
