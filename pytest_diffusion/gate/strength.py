"""What trials of known damage say about a gate: its power, and the weakest damage that it catches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_diffusion.gate.trial import Trial
from pytest_diffusion.maths.statistics import wilson_interval

_HALVINGS, _BISECTIONS = 5, 3


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
