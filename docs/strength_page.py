"""The tables of docs/strength.md and of the README's self-test.

python -m docs.strength_page                                        # the kinds of damage, from their declarations
python -m docs.strength_page --report diffusion-report.json         # the demo's self-test, from a report
python -m docs.strength_page --history build/history.jsonl          # the real defects, from the results of benchmarks.history
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_diffusion.gate.kinds import all_damages
from pytest_diffusion.maths.statistics import wilson_interval
from pytest_diffusion.report.selftest import COLUMNS, selftest_rows, selftest_table, selftest_text

FOLDER = Path(__file__).parent
PAGE, README = FOLDER / "strength.md", FOLDER.parent / "README.md"
_SHORT = ("denoiser_noise", "text_encoder_noise", "decoder_noise", "few_bits", "prediction_type", "too_few_steps", "bfloat16_weights")


def kinds() -> str:
    """The table of kinds."""
    rows = []
    for one in all_damages():
        if not one.apply.__module__.startswith("pytest_diffusion."):
            continue
        strengths = ", ".join(f"{100 * each:g} %" if one.is_continuous else f"{each:g}" for each in one.strengths) or "–"
        usual = f"{100 * one.usual:g} %" if one.is_continuous else f"{one.usual:g}" if one.strengths else "–"
        which = "sound" if one.sound == "copy" else "sound for a fine-tune" if one.sound else "damage"
        rows.append([f"`{one.name}`", one.title.format("S"), which, strengths, usual, "full" if one.is_long else "quick"])
    return _table(("name", "what is done", "is", "strengths", "usual", "from"), rows)


def history(path: Path) -> str:
    """The table of real defects, and how many are caught."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = []
    for one in (one for one in found if one["threads"]):
        told = ", ".join(one["caught_by"][:3]) or (f"not decided: {', '.join(one['undecided'][:3])}" if one["undecided"] else "same")
        absolute = "not asked" if one["absolute"] is None else ", ".join(one["absolute"][:3]) or "missed"
        rows.append([one["fact"], one["family"], ", ".join(one["threads"]), told, one["at"], absolute])
    sound = [one for one in found if not one["threads"]]
    found = [one for one in found if one["threads"]]
    caught, undecided = sum(bool(one["caught_by"]) for one in found), sum(bool(one["undecided"]) for one in found)
    low, high = wilson_interval(caught, len(found))
    lines = [
        f"Compared with the parent, {caught} of {len(found)} are shown to be worse ({100 * low:.0f} to {100 * high:.0f} %).",
        f"{undecided} more are not decided at the largest number of pairs or images; as nothing undecided opens the gate, it opens for",
        f"{len(found) - caught - undecided} of {len(found)}. Of {len(sound)} sound copies, one of each model,",
        f"{sum(bool(one['caught_by']) for one in sound)} are called worse and it opens for",
        f"{sum(not one['caught_by'] and not one['undecided'] for one in sound)}.",
    ]
    if asked := [one for one in found if one["absolute"] is not None]:
        lines.append(f"Of {len(asked)} on the demo, the absolute checks catch {sum(bool(one['absolute']) for one in asked)}.")
    columns = ("defect", "model", "reported in", "comparison with the parent", "decided after", "absolute checks")
    return " ".join(lines) + "\n\n" + _table(columns, rows)


def between(text: str, name: str, content: str) -> str:
    """A text with other content between its marks."""
    head, _, rest = text.partition(f"<!-- {name}: begin -->\n")
    _, _, tail = rest.partition(f"<!-- {name}: end -->")
    return f"{head}<!-- {name}: begin -->\n{content}\n<!-- {name}: end -->{tail}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)


def _write(path: Path, name: str, content: str) -> None:
    path.write_text(between(path.read_text(encoding="utf-8"), name, content), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--quick", type=Path, help="the report of a quick self-test, for the README")
    parser.add_argument("--history", type=Path)
    arguments = parser.parse_args()
    _write(PAGE, "kinds", kinds())
    if arguments.report is not None:
        facts: dict[str, Any] = json.loads(arguments.report.read_text(encoding="utf-8"))["run"]
        _write(PAGE, "table", f"{_table(COLUMNS, selftest_rows(facts))}\n\n```\n" + "\n".join(selftest_text(facts)) + "\n```")
    if arguments.quick is not None:
        facts = json.loads(arguments.quick.read_text(encoding="utf-8"))["run"]
        facts["selftest"]["rows"] = [row for row in facts["selftest"]["rows"] if row["damage"] in _SHORT]
        table = [line.rsplit("  ", 1)[0].rstrip() for line in selftest_table(facts)]
        _write(README, "selftest", "```\n" + "\n".join([*table, "..."]) + "\n```")
    if arguments.history is not None:
        _write(PAGE, "history", history(arguments.history))


if __name__ == "__main__":
    main()
