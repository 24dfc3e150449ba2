"""Rows of `.jsonl` and `.csv` files with the line each came from."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from pytest_diffusion.verdicts.errors import SetupError

_COLUMNS = {"prompt", "caption", "text", "image", "file_name"}
"""Columns of which a `.csv` has at least one."""
_LONGEST = 1_000_000
"""Characters in a line; a prompt has some hundreds."""


def read_rows(path: Path, option: str) -> list[tuple[int, dict[str, Any]]]:
    """Line number and row of each line of a `.jsonl`, or of each record of a `.csv`, whose captions may span lines.

    Raises SetupError, with option, file and line, for a line that is not JSON.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise SetupError(f"{option}: {path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            header = list(reader.fieldnames or [])
            if not _COLUMNS & set(header):
                semicolon = " Its columns are separated by ';': use commas." if ";" in "".join(header) else " Is its header line missing?"
                known = ", ".join(sorted(_COLUMNS))
                raise SetupError(f"{option}: {path} has the columns {', '.join(header)!r}; expected some of {known}.{semicolon}")
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise SetupError(f"{option}: {path}, line {reader.line_num} is not valid CSV: {error}.") from None
    rows = []
    # Not splitlines: JSON strings may contain other line separators of Unicode.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if len(line) > _LONGEST:
            raise SetupError(f"{option}: {path}, line {number} has {len(line)} characters; at most {_LONGEST} are read.")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SetupError(f"{option}: {path}, line {number} is not valid JSON: {error}.") from None
        except RecursionError:
            raise SetupError(f"{option}: {path}, line {number} is nested too deeply.") from None
        rows.append((number, row if isinstance(row, dict) else {}))
    return rows
