"""Looks at growing data: when a run may stop early, and what a difference is worth after several looks.

The standardised sum of differences after n of H pairs moves like a Brownian motion at the time n/H. A boundary of constant
height for it is the rule of O'Brien and Fleming: strict at first, and nearly as strong at the end as a single look.
A run may go on beyond its horizon. A share of the error is kept for that, and shared out again over horizons that grow by a
factor, so that the error of all looks ever taken stays below alpha, whoever adds samples and whenever.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit  # not scipy.stats, which takes a second to load

_GRID = 151
_LOWEST, _HIGHEST = -7.0, 8.0


@dataclass(frozen=True)
class Plan:
    """Looks after fixed numbers of pairs. Raises ValueError for a horizon below the first look."""

    horizon: int = 1000
    """Pairs that are expected to decide. Most of the error is spent up to here."""
    every: int = 64
    """Pairs between looks; the first ones come after a quarter and a half of it."""
    share: float = 0.8
    """Share of alpha that is spent up to the horizon; the same share of the rest is spent up to the next one, and so on."""
    growth: int = 4
    """Each later horizon is so many times the one before."""

    def __post_init__(self) -> None:
        if self.horizon < max(1, self.every // 4):
            raise ValueError(f"horizon is {self.horizon}; expected at least {max(1, self.every // 4)} pairs, the first look.")
        if not 0 < self.share < 1 or self.growth < 2 or self.every < 1:
            raise ValueError("expected 0 < share < 1, growth >= 2 and every >= 1.")

    def looks(self, most: int) -> list[int]:
        """Numbers of pairs, up to `most`, after which the data are looked at."""
        found, epoch = list[int](), 0
        while not found or (found[-1] < most and epoch < 40):
            found += self._looks_of(epoch)
            epoch += 1
        return [count for count in found if count <= most]

    def critical(self, count: int, alpha: float) -> float:
        """How many standard errors a one-sided difference must exceed after `count` pairs. Raises ValueError where no look is planned."""
        epoch = self._epoch(count)
        height = boundary(alpha * self._spent(epoch), self._times(epoch))
        return height * math.sqrt(self._horizon(epoch) / count)

    def p_value(self, scores: Mapping[int, float]) -> float:
        """One-sided p-value of differences in standard errors, by the number of pairs at each look so far.

        It is valid at every look and after every continuation: below alpha in at most a share alpha of runs without a difference.
        """
        found = 1.0
        for epoch in {self._epoch(count) for count in scores}:
            inside = [score * math.sqrt(count / self._horizon(epoch)) for count, score in scores.items() if self._epoch(count) == epoch]
            found = min(found, crossing_probability(max(inside), self._times(epoch)) / self._spent(epoch))
        return min(1.0, found)

    def _horizon(self, epoch: int) -> int:
        return self.horizon * int(self.growth**epoch)

    def _spent(self, epoch: int) -> float:
        return self.share * (1 - self.share) ** epoch

    def _looks_of(self, epoch: int) -> list[int]:
        """Looks after the horizon before this one, the horizon itself included. Later epochs have as many as the first."""
        end, begin = self._horizon(epoch), self._horizon(epoch - 1) if epoch else 0
        step = self.every * self.growth**epoch
        early = [self.every // 4, self.every // 2] if not epoch else []
        found = [count for count in (*early, *range((begin // step + 1) * step, end, step)) if begin < count < end]
        return [*found, end]

    def _epoch(self, count: int) -> int:
        epoch = 0
        while self._horizon(epoch) < count:
            epoch += 1
        if count not in self._looks_of(epoch):
            raise ValueError(f"no look is planned after {count} pairs.")
        return epoch

    def _times(self, epoch: int) -> tuple[float, ...]:
        return tuple(count / self._horizon(epoch) for count in self._looks_of(epoch))


@dataclass(frozen=True)
class OneLook:
    """A single look at all pairs, in place of a plan: nothing is added later, so nothing of the error is kept back."""

    def critical(self, count: int, alpha: float) -> float:
        """How many standard errors a one-sided difference must exceed."""
        return float(-ndtri(alpha))

    def p_value(self, scores: Mapping[int, float]) -> float:
        """One-sided p-value of a difference in standard errors, by the number of pairs."""
        (score,) = scores.values()
        return float(ndtr(-score))


@lru_cache(maxsize=4096)
def boundary(alpha: float, times: tuple[float, ...]) -> float:
    """The height that a Brownian motion exceeds at any of the times, increasing in (0, 1], with probability alpha."""
    from scipy.optimize import brentq

    low, high = 0.0, float(-ndtri(alpha / (2 * len(times)))) + 1.0
    return float(brentq(lambda height: crossing_probability(height, times) - alpha, low, high, xtol=1e-9))


@lru_cache(maxsize=65536)
def crossing_probability(height: float, times: tuple[float, ...]) -> float:
    """Probability that a Brownian motion lies above a height at any of the times, increasing in (0, 1].

    Computed by integrating the density of the paths that have stayed below, from look to look.
    Source: Armitage, McPherson & Rowe 1969; O'Brien & Fleming 1979.
    """
    if height <= 0 and len(times) > 1:
        return 1.0
    if len(times) == 1 or height > _HIGHEST:
        # So far out, the grid would be too coarse; the reflection principle gives a bound.
        return float(ndtr(-height / math.sqrt(times[0]))) if len(times) == 1 else float(2 * ndtr(-height))
    grid = np.linspace(_LOWEST, height, _GRID)
    step = grid[1] - grid[0]
    weights = np.where(np.arange(_GRID) % 2, 4.0, 2.0) * step / 3  # Simpson's rule
    weights[[0, -1]] /= 2
    spread = math.sqrt(times[0])
    crossed = float(ndtr(-height / spread))
    density = np.exp(-0.5 * (grid / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
    kernels: dict[float, np.ndarray] = {}
    for before, after in itertools.pairwise(times):
        spread = round(math.sqrt(after - before), 12)
        mass = density * weights
        crossed += float(mass @ ndtr((grid - height) / spread))
        if spread not in kernels:
            kernels[spread] = np.exp(-0.5 * ((grid[:, None] - grid[None, :]) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
        density = kernels[spread] @ mass
    return min(1.0, crossed)


def as_normal(ratio: float, degrees: float) -> float:
    """The normal score that is as unlikely as a ratio of Student's t with `degrees` of freedom."""
    if math.isinf(ratio) or math.isnan(ratio):
        return ratio
    # From the tail that is small, so that no digits are lost.
    return float(ndtri(stdtr(degrees, ratio))) if ratio < 0 else float(-ndtri(stdtr(degrees, -ratio)))


def as_ratio(score: float, degrees: float) -> float:
    """The inverse of `as_normal`: so many standard errors, estimated with `degrees` of freedom, are as unlikely as a normal score."""
    ratio = -float(stdtrit(degrees, ndtr(-score)))
    # Beyond about 37 the normal tail is no number any more, and its quantile has the other sign.
    return math.inf if score > 0 and not 0 < ratio < math.inf else ratio


def holm(p_values: Mapping[str, float], alpha: float, *, family: int | None = None) -> set[str]:
    """Names whose hypotheses are rejected, so that the chance of any false rejection is at most alpha, however they depend.

    `family` is the number of hypotheses where some of them have no p-value yet. Source: Holm 1979.
    """
    remaining = max(family or 0, len(p_values))
    rejected = set[str]()
    for name, value in sorted(p_values.items(), key=lambda item: item[1]):
        if value > alpha / remaining:
            break
        rejected.add(name)
        remaining -= 1
    return rejected
