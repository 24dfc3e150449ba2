"""Rows of `.jsonl` and `.csv` files with the line each came from."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from pytest_diffusion.verdicts.errors import SetupError


def read_rows(path: Path, option: str) -> list[tuple[int, dict[str, Any]]]:
    """Line number and row of each line of a `.jsonl`, or of each record of a `.csv`, whose captions may span lines.

    Raises SetupError, with option, file and line, for a line that is not JSON.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read()
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        return [(reader.line_num, row) for row in reader]
    rows = []
    # Not splitlines: JSON strings may contain other line separators of Unicode.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SetupError(f"{option}: {path}, line {number} is not valid JSON: {error}.") from None
        rows.append((number, row if isinstance(row, dict) else {}))
    return rows
