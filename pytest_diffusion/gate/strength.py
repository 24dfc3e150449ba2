"""What trials of known damage say about a gate: its power, the weakest damage that it catches, its margins, the pairs that it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats

from pytest_diffusion.config.margins import Margins
from pytest_diffusion.gate.figures import figure_named
from pytest_diffusion.gate.trial import Figure, Trial
from pytest_diffusion.maths.statistics import wilson_interval

FACTOR = 1.5
"""A suggested margin is so many times the largest change of a sound variant, or of the noise floor."""
FEWEST_SOUND = 3
"""Kinds of sound changes from which a margin may be derived."""
_SURE = 1.645
"""One-sided 95 % of the error is added to a change that must be allowed, and taken from one that must be seen."""
_POWER = 0.9
_HALVINGS, _BISECTIONS = 5, 3
UNPAIRED = "other_seeds"
"""The sound change under which pairs share no noise: its error is that of unpaired samples, and says nothing about margins."""
_LOSSES = ("denoising_loss", "retention_loss", "text_encoder_loss")


@dataclass(frozen=True)
class Power:
    """How often a damage was caught, over repeated seeds, with its 95 % interval (Wilson 1927)."""

    caught: int
    runs: int

    @property
    def interval(self) -> tuple[float, float]:
        """Of the chance to be caught."""
        return wilson_interval(self.caught, self.runs)


@dataclass(frozen=True)
class Limit:
    """The weakest strength that was caught, and the strongest below it that was missed; None where there was none."""

    caught: float | None
    missed: float | None


def power_of(trials: Sequence[Trial]) -> Power:
    """The power over trials of one damage at one strength, one for each seed."""
    return Power(sum(one.is_caught for one in trials), len(trials))


def detection_limit(is_caught: Callable[[float], bool], usual: float, *, strongest: float) -> Limit:
    """The weakest strength that is caught, by halving or doubling from the usual one, and then by bisection in logarithms.

    Strengths are tried down to 1/32 of the usual one, and up to the strongest. The limit is known to within a tenth.
    """
    caught = missed = None
    strength = usual
    if is_caught(usual):
        caught = usual
        for _ in range(_HALVINGS):
            strength /= 2
            if not is_caught(strength):
                missed = strength
                break
            caught = strength
    else:
        missed = usual
        while caught is None and strength < strongest:
            strength = min(2 * strength, strongest)
            if is_caught(strength):
                caught = strength
            else:
                missed = strength
    for _ in range(_BISECTIONS):
        if caught is None or missed is None:
            break
        middle = math.sqrt(caught * missed)
        if is_caught(middle):
            caught = middle
        else:
            missed = middle
    return Limit(caught, missed)


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
    pairs: int
    """Images or pairs with which a sound variant would be shown to be within this margin, with a chance of 90 %."""
    kept: bool = False
    """Whether it is the margin of this run, because no sound variant here stands for training."""


def suggest_margins(trials: Sequence[Trial], floors: dict[str, float], margins: Margins, *, is_copy: bool) -> list[Suggested]:
    """A margin for each figure that sound variants were measured on: the largest change or the floor, times `FACTOR`.

    A self-test has no sound fine-tune, which costs more loss than any copy; so for a gate of fine-tunes the losses keep their margins,
    unless sound variants need more. Nothing is suggested from fewer than `FEWEST_SOUND` kinds of sound changes.
    """
    sound = [(trial, figure) for trial in trials if trial.sound and trial.damage != UNPAIRED for figure in trial.figures]
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
            continue
        seen = [
            f"{trial.damage} {trial.strength:g}" if trial.strength else trial.damage
            for trial in trials
            if not trial.sound
            for figure in trial.figures
            if figure.name == name and figure.loss - _SURE * figure.error > size
        ]
        needed = max(pairs_needed(figure, size, margins) for _, figure in own)
        found.append(Suggested(name, size, current, floor, largest, by.damage, list(dict.fromkeys(seen)), needed, kept))
    return found


def pairs_needed(figure: Figure, margin: float, margins: Margins) -> int:
    """Pairs with which this change would be shown to lie within a margin, with a chance of 90 %; 0 where it lies beyond it.

    For one look at level alpha. Looks in between need about a tenth more at most.
    """
    room = margin - max(0.0, figure.loss)
    if room <= 0 or not math.isfinite(figure.error):
        return 0
    quantiles = float(stats.norm.ppf(1 - margins.alpha) + stats.norm.ppf(_POWER))
    return math.ceil(figure.pairs * (quantiles * figure.error / room) ** 2)


def title_of(name: str) -> str:
    """A figure's title, with its unit."""
    figure = figure_named(name)
    return f"{figure.title} ({figure.unit})" if figure.unit else figure.title


def _rounded_up(value: float) -> float:
    """A number rounded up to two digits."""
    if value <= 0 or not math.isfinite(value):
        return 0.0
    scale: float = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / scale - 1e-9) * scale:.2g}")
