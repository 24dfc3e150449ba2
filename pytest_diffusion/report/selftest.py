"""The self-test in words: a table of damage and what caught it, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_diffusion.verdicts.plain_json import with_numbers
from pytest_diffusion.verdicts.text import number

COLUMNS = ("damage", "comparison with the parent", "decided after", "caught", "weakest caught", "absolute checks")
_SHOWN = 3


def selftest_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Rows of texts by `COLUMNS`: damage first, then sound changes; none where there was no self-test."""
    rows = facts.get("selftest", {}).get("rows", [])
    return [_row(row) for row in sorted(rows, key=lambda row: row["sound"])]


def selftest_text(facts: Mapping[str, Any]) -> list[str]:
    """Sentences below the table."""
    test = with_numbers(facts.get("selftest") or {})
    if not test:
        return []
    rows = test["rows"]
    damaged, sound = ([row for row in rows if row["sound"] == is_sound] for is_sound in (False, True))
    caught = [row for row in damaged if row["caught"] or row["absolute"]]
    # What was not judged did not pass.
    alarms, tried = (sum(row[key] for row in sound if row["word"] != "not judged") for key in ("caught", "seeds"))
    of = f"{len(caught)} of {len(damaged)} kinds of damage are caught"
    lines = [
        f"Self-test ({test['level']}) of {test['model']}, {test['seconds']:.0f} s: {of}; {alarms} of {tried} sound trials are called worse."
    ]
    lines += [f"Missed: {row['title']}. What would see it: {row['needs']}." for row in damaged if row["needs"]]
    lines += [f"Does not fit this model: {', '.join(test['not_applicable'])}."] if test["not_applicable"] else []
    lines += [f"Not tried: {'; '.join(test['left_out'])}."] if test["left_out"] else []
    return lines


def suggested_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Rows of texts: figure, this run's margin, the suggested one, what it rests on, what it would see, the pairs that it needs."""
    return [
        [
            one["figure"],
            number(one["current"]) if one["current"] is not None else "reported",
            number(one["margin"]) + (" (kept)" if one["kept"] else ""),
            f"{number(one['largest'])} by {one['by']}, floor {number(one['floor'])}",
            _first(one["seen"]) or "none of those tried",
            "no number suffices" if one["pairs"] is None else str(one["pairs"]),
        ]
        for one in with_numbers(facts.get("selftest", {}).get("suggested", []))
    ]


def limit_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Rows of texts: absolute check, this run's limit, the suggested one, what it rests on, what it would see."""
    signs = {"at_most": "≤", "at_least": "≥"}
    return [
        [
            one["check"],
            f"{signs[one['side']]} {number(one['current'])}",
            f"{signs[one['side']]} {number(one['limit'])}",
            f"{number(one['parent'])}; worst end {number(one['worst'])} by {one['by']}",
            _first(one["seen"]) or "none of those tried",
        ]
        for one in with_numbers(facts.get("selftest", {}).get("suggested_limits", []))
    ]


def selftest_table(facts: Mapping[str, Any]) -> list[str]:
    """The table as lines for a terminal, with columns of equal width; empty where there was no self-test."""
    rows = selftest_rows(facts)
    if not rows:
        return []
    table = [list(COLUMNS), *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(COLUMNS))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _row(row: Mapping[str, Any]) -> list[str]:
    word = {"worse": "worse: ", "cannot tell": "not decided: "}.get(row["word"], "")
    found = f"{word}{_first(row['by'])}" if word else row["note"] or row["word"]
    low, high = (float(end) for end in row["interval"])
    caught = f"{row['caught']} of {row['seeds']}" + (f" ({100 * low:.0f} to {100 * high:.0f} %)" if row["seeds"] > 1 else "")
    title = f"sound: {row['title']}" if row["sound"] else row["title"]
    absolute = "not asked" if row["absolute"] is None else _first(row["absolute"]) or "none fails"
    return [title, found, row["at"], caught, number(row["limit"]) if row["limit"] is not None else "–", absolute]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
