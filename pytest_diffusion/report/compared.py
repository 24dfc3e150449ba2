"""The comparison with a baseline in words: a few sentences for the first screen, and a table of figures against margins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytest_diffusion.verdicts.text import number
from pytest_diffusion.verdicts.verdict import Verdict

_WORDS = ("worse", "cannot tell", "same", "better")
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


def comparison_text(verdicts: Iterable[Verdict], facts: Mapping[str, Any]) -> list[str]:
    """Sentences for the first screen and the terminal; none where nothing was compared."""
    if "baseline" not in facts:
        return []
    from pytest_diffusion.gate.figures import learned_and_forgot

    name = facts["baseline"]["name"]
    if facts.get("identical"):
        return [f"Against {name}: same. Nothing differs, so no image was drawn."]
    verdicts = list(verdicts)
    judged = [one for one in verdicts if one.lens == "paired" and one.measurement is not None and one.measurement.relation]
    by_word = {word: [one.check.removeprefix("paired_") for one in judged if _relation(one) == word] for word in _WORDS}
    told = [
        f"{', '.join(names)} {word}" if word != "cannot tell" else f"{', '.join(names)} not decided"
        for word, names in by_word.items()
        if names
    ]
    if not any(one.measurement is not None and one.measurement.series.get("margin") for one in judged) and not by_word["worse"]:
        broken = [one.check for one in verdicts if one.lens == "paired" and one.outcome == "broken"]
        why = f" {', '.join(broken[:4])} could not be measured." if broken else ""
        return [f"Against {name}: not compared; no figure was held against a margin.{why}"]
    verdict = "worse" if by_word["worse"] else "cannot tell" if by_word["cannot tell"] else "no worse"
    lines = [f"Against {name}: {verdict} ({'; '.join(told)})."]
    if trade := learned_and_forgot(by_word["better"], by_word["worse"]):
        lines.append(trade)
    differs = facts["baseline"].get("differs")
    if differs:
        lines.append(f"They differ in {', '.join(differs)}.")
    if "pairs" in facts:
        saved = facts["pairs_planned"] - facts["pairs"]
        lines.append(
            f"Drawn: {facts['pairs']} of at most {facts['pairs_planned']} pairs{f', {saved} saved by an early decision' if saved else ''}."
        )
    else:
        lines.append("No image was drawn for the comparison.")
    if "alpha" in facts["baseline"]:
        lines.append(
            f"The chance that a candidate within all its margins is called worse is at most {100 * facts['baseline']['alpha']:g} %."
        )
    return lines


def _relation(verdict: Verdict) -> str:
    return verdict.measurement.relation if verdict.measurement is not None else ""
