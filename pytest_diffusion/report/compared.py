"""The comparison with a baseline as a table: figures against margins, with the change."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_diffusion.verdicts.text import number
from pytest_diffusion.verdicts.verdict import Verdict

_ORDER = {"worse": 0, "cannot tell": 1, "": 2, "same": 3, "better": 4}


def worst_changes_first(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Verdicts on changes: worse, then undecided, then reported, then the others."""
    return sorted(verdicts, key=lambda verdict: (not verdict.gates, _ORDER[verdict.measurement.relation if verdict.measurement else ""]))


def comparison_table(verdicts: Iterable[Verdict]) -> str:
    """Markdown: a row for each figure with its change, interval, margin and word."""
    lines = ["", "| figure | change | interval | allowed | verdict |", "|---|---|---|---|---|"]
    for verdict in worst_changes_first(verdicts):
        one = verdict.measurement
        if one is None:
            continue
        interval = f"{number(one.interval[0])} to {number(one.interval[1])}" if one.interval is not None else "exact"
        limits = verdict.limits.text if verdict.limits is not None and verdict.limits.is_set else "–"
        name = verdict.check.removeprefix("paired_").removeprefix("against_")
        lines.append(f"| {name} | {number(one.value)} {one.unit} | {interval} | {limits} | {one.relation or verdict.outcome} |")
    return "\n".join(lines) + "\n"
