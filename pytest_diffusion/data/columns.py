"""Columns of tables of prompts and of reference images, by whose values a comparison is sliced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_diffusion.data.rows import read_rows
from pytest_diffusion.verdicts.errors import SetupError, unknown_name

_OPTION = "--diffusion-slices"


def prompt_columns(prompts: str | None, reference: str | None, names: Sequence[str]) -> dict[str, list[str | None]]:
    """Values of those columns that the table of the prompts has, one for each prompt of `prompts_of`; None where a row has none."""
    path = _table(prompts or reference) if names else None
    if path is None:
        return {}
    rows = [row for _, row in read_rows(path, _OPTION)]
    found = {name: [row.get(name) for row in rows] for name in names}
    return {
        name: [None if value is None else str(value) for value in values]
        for name, values in found.items()
        if any(v is not None for v in values)
    }


def places_of(names: Sequence[str], prompts: str | None, reference: str | None, retention: str | None) -> dict[str, str]:
    """For each column whose table it slices by: "prompts", else "reference", else "retention".

    A column that no file has is the reference's, which may be a data set of the hub.
    """
    tables = {
        "prompts": prompt_columns(prompts, reference, names),
        "reference": prompt_columns(None, reference, names),
        "retention": prompt_columns(None, retention, names),
    }
    return {name: next((place for place, columns in tables.items() if name in columns), "reference") for name in names}


def require_columns(names: Sequence[str], tables: Sequence[str | None]) -> None:
    """Raise SetupError for a column that none of these prompts and references has.

    What is not a file, such as a data set of the hub, is not looked into: where one is named, nothing is refused.
    """
    if not names or any(table is not None and table.startswith("hf:") for table in tables):
        return
    paths = [path for path in map(_table, tables) if path is not None]
    if not paths:
        shown = next((table for table in tables if table is not None), "the built-in list")
        raise SetupError(f"{_OPTION}: {names[0]} is a column, and {shown} has none; name a .jsonl or .csv of prompts, or use words.")
    columns = {
        key
        for path in paths
        for _, row in read_rows(path, _OPTION)
        for key, value in row.items()
        if isinstance(key, str) and value is not None
    }
    for name in names:
        if name not in columns:
            shown = " and ".join(map(str, dict.fromkeys(paths)))
            raise SetupError(f"{_OPTION}: " + unknown_name(f"the column of {shown}", name, sorted(columns)))


def _table(name: str | None) -> Path | None:
    path = Path(name or "")
    return path if path.suffix in (".jsonl", ".csv") else None
