"""The Markdown summary for a pull request."""

from __future__ import annotations

import math
import re

from pytest_diffusion.report.compared import comparison_table, comparison_text
from pytest_diffusion.report.contents import Report, grouped
from pytest_diffusion.report.selftest import COLUMNS, selftest_rows, selftest_text
from pytest_diffusion.report.trend import trend_rows, trend_text
from pytest_diffusion.verdicts.error_rates import distance_to_limit
from pytest_diffusion.verdicts.quantiles import Z95

BARS, LOWEST, HIGHEST = 8, -3, 8
"""Figures in the picture, and the half intervals that it shows; what lies beyond stands at its edge."""


def summary(report: Report) -> str:
    """The gate, the command, and a table of verdicts with the worst first."""
    lines = [f"## Diffusion quality: gate {report.gate}", "", _code(report.command), ""]
    lines += [", ".join(f"{count} {outcome}" for outcome, count in report.counts.items()) + "\n"] if report.counts else []
    lines += [f"{_text(reason)}\n" for reason in report.decision.reasons]
    if report.decision.left_out:
        lines.append(f"Not run: {', '.join(report.decision.left_out)}\n")
    lines += _picture(report)
    verdicts = [entry.verdict for entry in report.entries if entry.is_of_checklist]
    if told := comparison_text(verdicts, report.facts):
        lines += [*(f"{_text(line)}\n" for line in told)]
        lines.append(comparison_table(one for one in verdicts if one.lens == "paired"))
    if since := trend_text(report.facts):
        lines += [*(f"{_text(line)}\n" for line in since)]
        if changed := trend_rows(report.facts, verdicts):
            lines += ["| check | last release | now | change |", "|---|---|---|---|"]
            lines += [f"| {one.check} | {one.before} | {one.now} | {one.change} |" for one in changed]
            lines.append("")
    if rows := selftest_rows(report.facts):
        lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(map(_text, row))} |" for row in rows]
        lines += ["", *(f"{_text(line)}\n" for line in selftest_text(report.facts))]
    lines += ["", "| outcome | check | message |", "|---|---|---|"]
    for verdict, checks in grouped(entry.verdict for entry in report.entries):
        lines.append(f"| {verdict.outcome} | {', '.join(checks)} | {_text(verdict.message)} |")
    return "\n".join(lines) + "\n"


def _picture(report: Report) -> list[str]:
    """A bar chart, in Mermaid, of the figures that lie nearest to their limits or beyond; none where no figure has an interval."""
    known = [(entry.verdict.check, distance_to_limit(entry.verdict)) for entry in report.entries if entry.is_of_checklist]
    bars = sorted((distance / Z95, name) for name, distance in known if distance is not None and not math.isnan(distance))[:BARS]
    if not bars:
        return []
    names = ", ".join(f'"{name}"' for _, name in bars)
    heights = ", ".join(f"{min(max(height, LOWEST), HIGHEST):.2f}" for height, _ in bars)
    return [
        "```mermaid",
        "xychart-beta horizontal",
        '  title "Nearest to their limits: half intervals inside (below 1: not with the whole interval)"',
        f"  x-axis [{names}]",
        f'  y-axis "half intervals" {LOWEST} --> {HIGHEST}',
        f"  bar [{heights}]",
        "```",
        "",
    ]


def _text(text: str) -> str:
    """One line in which nothing is markup: no cell ends, no tag, link, image or code begins."""
    shown = " ".join(text.split())
    for mark in "\\`*_[]|":
        shown = shown.replace(mark, f"\\{mark}")
    return shown.replace("&", "&amp;").replace("<", "&lt;")


def _code(text: str) -> str:
    """A code span that holds any text: its fence is longer than every run of backticks in it."""
    shown = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"`{shown}`"
