"""Margins and limits that follow from what sound changes of a model did to its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import ndtri

from pytest_diffusion.config.margins import Margins
from pytest_diffusion.gate.trial import IDLE, Figure, Trial

FACTOR = 1.5
"""A suggested margin is so many times the largest change of a sound variant, or of the noise floor."""
FEWEST_SOUND = 3
"""Kinds of sound changes from which a margin or a limit may be derived."""
_SURE = 1.645
"""One-sided 95 % of the error is added to a change that must be allowed, and taken from one that must be seen."""
_POWER = 0.9
UNPAIRED = "other_seeds"
"""The sound change under which pairs share no noise: its error is that of unpaired samples, and says nothing about margins."""
_LOSSES = ("denoising_loss", "retention_loss", "text_encoder_loss")


@dataclass(frozen=True)
class Suggested:
    """A margin that follows from what was measured."""

    figure: str
    margin: float
    current: float | None
    """The margin of this run, in the figure's units."""
    floor: float
    largest: float
    """Largest change of a sound variant, with one-sided 95 % of its error."""
    by: str
    """The sound variant with the largest change."""
    seen: list[str]
    """Damages whose change lies beyond the suggested margin, by more than their error."""
    pairs: int | None
    """Images or pairs with which all sound variants would be shown to be within this margin, each with a chance of 90 %; None: never."""
    direction: int = 1
    """As that of its figure under this run's margins: 0 where any change counts."""
    factor: float = FACTOR
    kept: bool = False
    """Whether it is the margin of this run, because no sound variant here stands for training."""


def suggest_margins(trials: Sequence[Trial], floors: dict[str, float], margins: Margins, *, is_copy: bool) -> list[Suggested]:
    """A margin for each figure that sound variants were measured on: the largest change or the floor, times `FACTOR`.

    A self-test has no sound fine-tune, which costs more loss than any copy; so for a gate of fine-tunes the losses keep their margins,
    unless sound variants need more. Nothing is suggested from fewer than `FEWEST_SOUND` kinds of sound changes.
    """
    sound = [
        (trial, figure) for trial in trials if trial.sound and trial.damage != UNPAIRED and trial.note != IDLE for figure in trial.figures
    ]
    found: list[Suggested] = []
    if len({trial.damage for trial, _ in sound}) < FEWEST_SOUND:
        return found
    for name in dict.fromkeys(figure.name for _, figure in sound):
        own = [(trial, figure) for trial, figure in sound if figure.name == name and math.isfinite(figure.error)]
        if not own:
            continue
        by, worst = max(own, key=lambda pair: pair[1].loss + _SURE * pair[1].error)
        floor, largest = floors.get(name, 0.0), max(0.0, worst.loss + _SURE * worst.error)
        size = _rounded_up(FACTOR * max(floor, largest))
        current = next((figure.margin for _, figure in own if figure.margin is not None), None)
        kept = not is_copy and name in _LOSSES and current is not None and current >= size
        size = current if kept and current is not None else size
        if size <= 0:
            continue  # equal in every sound variant
        seen = [
            _named(trial)
            for trial in trials
            if not trial.sound
            for figure in trial.figures
            if figure.name == name and figure.loss - _SURE * figure.error > size
        ]
        counts = [pairs_needed(figure, size, margins) for _, figure in own]
        needed = None if None in counts else max(count for count in counts if count is not None)
        found.append(
            Suggested(name, size, current, floor, largest, by.damage, list(dict.fromkeys(seen)), needed, worst.direction, kept=kept)
        )
    return found


@dataclass(frozen=True)
class SuggestedLimit:
    """A limit of an absolute check that follows from what was measured."""

    check: str
    side: str
    """"at_least" or "at_most"."""
    limit: float
    current: float
    parent: float
    """The model's own figure."""
    worst: float
    """The worst end of an interval of the model and its sound variants."""
    by: str
    """Whose it is."""
    seen: list[str]
    """Damages whose whole interval lies beyond the suggested limit."""
    samples: int | None
    min_reference: int | None
    extractor: str


def suggest_limits(parent: Sequence[Mapping[str, Any]], trials: Sequence[Trial]) -> list[SuggestedLimit]:
    """A limit for each check that has one: the worst end of a sound interval, and a quarter of its distance from the model's figure more.

    Checks that count what must not be there, of which all sound models have the same figure, keep their limits. Nothing is suggested
    from fewer than `FEWEST_SOUND` kinds of sound changes.
    """
    asked = [one for one in trials if one.absolute is not None and one.note != IDLE]
    sound = {"the model itself": parent, **{one.damage: one.absolute or () for one in asked if one.sound}}
    found: list[SuggestedLimit] = []
    if len(sound) <= FEWEST_SOUND:
        return found
    damaged = [(_named(one), {verdict["check"]: verdict for verdict in one.absolute or ()}) for one in asked if not one.sound]
    for verdict in parent:
        for side, sign in (("at_most", 1), ("at_least", -1)):
            if verdict.get(side) is None or verdict.get("value") is None:
                continue
            own = {name: one for name, verdicts in sound.items() for one in verdicts if one["check"] == verdict["check"]}
            ends = {name: _end(one, sign) for name, one in own.items() if one.get("value") is not None}
            by, worst = max(ends.items(), key=lambda item: sign * item[1])
            distance = abs(worst - verdict["value"])
            if not 0 < distance < math.inf:
                continue
            limit = sign * _rounded_up(sign * (worst + sign * distance / 4), digits=3)
            seen = [name for name, by_check in damaged if _is_beyond(by_check.get(verdict["check"]), limit, sign)]
            found.append(
                SuggestedLimit(
                    verdict["check"],
                    side,
                    limit,
                    verdict[side],
                    verdict["value"],
                    worst,
                    by,
                    seen,
                    verdict.get("num_samples"),
                    verdict.get("min_reference"),
                    verdict.get("extractor") or "",
                )
            )
    return found


def _end(verdict: Mapping[str, Any], sign: int) -> float:
    """The end of a figure's interval on the side of its limit."""
    interval = verdict.get("interval") or (verdict["value"], verdict["value"])
    return float(interval[1] if sign > 0 else interval[0])


def _is_beyond(verdict: Mapping[str, Any] | None, limit: float, sign: int) -> bool:
    if verdict is None or verdict.get("value") is None:
        return False
    return sign * (_end(verdict, -sign) - limit) > 0


def _named(trial: Trial) -> str:
    return f"{trial.damage} {trial.strength:g}" if trial.strength else trial.damage


def pairs_needed(figure: Figure, margin: float, margins: Margins) -> int | None:
    """Pairs with which this change would be shown to lie within a margin, with a chance of 90 %; None where it lies beyond it.

    For one look at level alpha. Looks in between need about a tenth more at most.
    """
    room = margin - max(0.0, figure.loss)
    if room <= 0 or not math.isfinite(figure.error):
        return None
    quantiles = float(ndtri(1 - margins.alpha) + ndtri(_POWER))
    return max(1, math.ceil(figure.pairs * (quantiles * figure.error / room) ** 2))


def _rounded_up(value: float, *, digits: int = 2) -> float:
    """A number rounded up to so many digits."""
    if value == 0 or not math.isfinite(value):
        return 0.0
    scale: float = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - digits)
    return float(f"{math.ceil(value / scale - 1e-9) * scale:.{digits}g}")
