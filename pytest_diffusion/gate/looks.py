"""What a figure's difference is called at each look: better, same, worse or cannot tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pytest_diffusion.config.margins import Margin, Margins
from pytest_diffusion.maths.sequential import OneLook, Plan, as_normal, as_ratio, holm
from pytest_diffusion.maths.statistics import Estimate

Word = Literal["better", "same", "worse", "cannot tell", ""]
"""`worse`: beyond the margin. `same`: within it. `better`: beyond it on the good side. Empty where there is no margin."""


@dataclass(frozen=True)
class Look:
    """A figure after some pairs: candidate less baseline, with its error, and the baseline's own values."""

    pairs: int
    difference: Estimate
    candidate: float
    baseline: float
    spread: float
    """Standard deviation of the baseline's values, from pair to pair."""
    clusters: int = 0
    """Groups of pairs that share a prompt, where they are counted together."""


@dataclass(frozen=True)
class Decided:
    """What is known of one figure at the end of the looks."""

    word: Word
    look: Look
    interval: tuple[float, float]
    """Of the difference, at the level 1 − 2·alpha, valid at every look."""
    margin: float | None = None
    """In the figure's units."""
    p_worse: float = 1.0
    floor: float = 0.0
    reason: str = ""
    """Why it cannot be told, where it cannot."""
    history: list[Look] = field(default_factory=list, repr=False)

    @property
    def is_blurred(self) -> bool:
        """Whether two sound builds of the baseline lie farther apart than the margin, so that no number of pairs decides."""
        return self.margin is not None and not self.floor <= self.margin


@dataclass(frozen=True)
class Rules:
    """How differences are judged. `direction` is 1 where more is better, -1 where less is, 0 where any change counts."""

    margins: Margins
    directions: Mapping[str, int]
    plan: Plan | OneLook
    floors: Mapping[str, float] = field(default_factory=dict)
    """How far two sound builds of the baseline lie apart, by figure."""
    family: int = 0
    """Figures that are judged in this run, those of other stages included."""

    def decide(self, histories: Mapping[str, Sequence[Look]]) -> dict[str, Decided]:
        """Each figure at its last look, from all its looks so far."""
        p_values = {name: self._p_worse(name, looks) for name, looks in histories.items() if self._margin(name) is not None}
        worse = holm(p_values, self.margins.alpha, family=self.family)
        return {name: self._decide(name, list(looks), p_values.get(name, 1.0), name in worse) for name, looks in histories.items()}

    def is_over(self, decided: Mapping[str, Decided]) -> bool:
        """Whether nothing is left to find out: a figure is worse, or all are decided."""
        if any(one.word == "worse" for one in decided.values()):
            return True
        return all(one.word != "cannot tell" or one.is_blurred for one in decided.values())

    def _decide(self, name: str, looks: list[Look], p_worse: float, is_worse: bool) -> Decided:
        last = looks[-1]
        interval = self._interval(last)
        margin = self._margin(name)
        if margin is None:
            return Decided("", last, interval, history=looks)
        size = margin.in_units(last.baseline, last.spread)
        floor = self.floors.get(name, 0.0)
        found = Decided("cannot tell", last, interval, size, p_worse, floor, history=looks)
        if size > 0 and found.is_blurred:
            reason = f"two sound builds of the baseline differ by {floor:.3g} on this machine, which is more than the margin"
            return _with(found, "cannot tell", reason)
        if is_worse:
            return _with(found, "worse")
        # What was once shown to be within the margin stays so, unless it is shown to be worse.
        words = [self._word(name, look, margin) for look in looks]
        best: Word = next((word for word in reversed(words) if word != "cannot tell"), "cannot tell")
        return _with(found, best, "" if best != "cannot tell" else _why_open(last))

    def _word(self, name: str, look: Look, margin: Margin) -> Word:
        """Better, same or cannot tell, at one look."""
        if look.difference[:2] == (0.0, 0.0):
            return "same"  # equal in every pair, whatever the margin
        low, high = self._interval(look)
        size = margin.in_units(look.baseline, look.spread)
        direction = self.directions.get(name, 0)
        if margin.is_two_sided(direction):
            return "same" if low > -size and high < size else "cannot tell"
        worst = low if direction > 0 else -high
        if worst > size:
            return "better"
        return "same" if worst > -size else "cannot tell"

    def _p_worse(self, name: str, looks: Sequence[Look]) -> float:
        """One-sided p-value of "the difference lies within the margin", over all looks."""
        margin = self._margin(name)
        assert margin is not None
        up, down = {}, {}
        for look in looks:
            size = margin.in_units(look.baseline, look.spread)
            value, error, degrees = look.difference
            up[look.pairs] = _score(value - size, error, degrees)
            down[look.pairs] = _score(-value - size, error, degrees)
        direction = self.directions.get(name, 0)
        if margin.is_two_sided(direction):
            return min(1.0, 2 * min(self.plan.p_value(up), self.plan.p_value(down)))
        return self.plan.p_value(down if direction > 0 else up)

    def _interval(self, look: Look) -> tuple[float, float]:
        value, error, degrees = look.difference
        if not math.isfinite(error) or degrees < 1:
            return -math.inf, math.inf
        half = as_ratio(self.plan.critical(look.pairs, self.margins.alpha), degrees) * error
        return value - half, value + half

    def _margin(self, name: str) -> Margin | None:
        return self.margins.of(name)


def _score(distance: float, error: float, degrees: float) -> float:
    """How many normal standard errors a distance is worth."""
    if not math.isfinite(error) or degrees < 1:
        return 0.0
    if error == 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return as_normal(distance / error, degrees)


def _why_open(look: Look) -> str:
    """Why a figure is not decided."""
    if math.isfinite(look.difference.standard_error):
        return "its interval reaches beyond the margin"
    return "there are too few pairs to know its error; a figure of features needs two for each of them"


def _with(found: Decided, word: Word, reason: str = "") -> Decided:
    return Decided(word, found.look, found.interval, found.margin, found.p_worse, found.floor, reason, found.history)
