"""Standard errors, confidence intervals, rank statistics and p-values that the verdicts use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_diffusion.verdicts.quantiles import Z95


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    standard_error: float
    degrees: float = math.inf
    """Degrees of freedom of the standard error; infinite where it is as good as known."""


def mean_estimate(values: torch.Tensor) -> Estimate:
    """The mean of independent values (N,) and its standard error; the error is nan for fewer than two."""
    return Estimate(float(values.double().mean()), mean_error(values), len(values) - 1)


def mean_error(values: torch.Tensor) -> float:
    """Standard error of the mean of values (N,); nan for fewer than two."""
    if len(values) < 2:
        return math.nan
    return float(values.double().std()) / math.sqrt(len(values))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a proportion, within [0, 1]; (0, 1) without any trial. Source: Wilson 1927."""
    if trials < 1:
        return 0.0, 1.0
    from scipy.stats import binomtest  # here and below: it takes a second to load

    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    # The ends are 0 and 1 exactly in exact arithmetic; rounding must not move them.
    return (0.0 if successes == 0 else float(interval.low)), (1.0 if successes == trials else float(interval.high))


def auroc(inliers: torch.Tensor, outliers: torch.Tensor) -> float:
    """Probability that an outlier scores above an inlier, ties counting half. Source: Hanley & McNeil 1982."""
    from scipy.stats import mannwhitneyu

    statistic = mannwhitneyu(outliers.double().numpy(), inliers.double().numpy(), method="asymptotic").statistic
    return float(statistic) / (len(inliers) * len(outliers))


def rank_correlations(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Spearman's correlation of each row of values (N, K) with `order` (K,), (N,), float64; 0 for a row that does not vary."""
    from scipy.stats import spearmanr

    found = [0.0 if bool((row == row[0]).all()) else float(spearmanr(row.numpy(), order.numpy()).statistic) for row in values]
    return torch.tensor(found, dtype=torch.float64)


def auroc_interval(value: float, num_inliers: int, num_outliers: int, *, z: float = Z95) -> tuple[float, float]:
    """95 % score interval of an AUROC, within [0, 1], with a width above zero at 0 and 1 too.

    It contains the values that lie within z of their own standard errors from the observed one. Source: Hanley & McNeil 1982,
    equation 2, for the error; Newcombe 2006, method 5, for its inversion.
    """

    def lies_within(candidate: float) -> bool:
        q1, q2 = candidate / (2 - candidate), 2 * candidate * candidate / (1 + candidate)
        variance = candidate * (1 - candidate) + (num_outliers - 1) * (q1 - candidate**2) + (num_inliers - 1) * (q2 - candidate**2)
        return abs(candidate - value) <= z * math.sqrt(max(variance, 0.0) / (num_inliers * num_outliers))

    def end(outside: float) -> float:
        inside = value
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if lies_within(middle) else (inside, middle)
        return inside

    return (0.0 if value == 0 else end(0.0)), (1.0 if value == 1 else end(1.0))


def jackknife(figure: Callable[..., float], *sides: torch.Tensor, groups: int = 20) -> Estimate:
    """A smooth statistic of independent samples, each (N, ...), and its standard error from leaving out one group at a time.

    Source: Quenouille 1956; Efron & Tibshirani 1993, chapter 11.
    """
    replicates = []
    for group in range(groups):
        kept = [side[torch.arange(len(side)) % groups != group] for side in sides]
        replicates.append(figure(*kept))
    values = torch.tensor(replicates, dtype=torch.float64)
    error = math.sqrt((groups - 1) / groups * float((values - values.mean()).square().sum()))
    return Estimate(figure(*sides), error, groups - 1)


def choice_p_value(chosen: Sequence[float], pools: Sequence[torch.Tensor], *, draws: int = 9999, seed: int = 0) -> float:
    """One-sided Monte Carlo p-value: how often random members of the pools have a mean as small as that of the chosen ones.

    Each `chosen` value is a member of its pool (K,), K >= 1; under the null hypothesis all members are equally likely. Never below
    1/(draws + 1). Source: Davison & Hinkley 1997, equation 4.11.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(draws, dtype=torch.float64)
    for pool in pools:
        total += pool.double()[torch.randint(len(pool), (draws,), generator=generator)]
    # Sums of the same numbers in another order differ by rounding, but must count as equal.
    observed = math.fsum(chosen)
    return (1 + int((total <= observed + 1e-9 * abs(observed)).sum())) / (draws + 1)


def sign_flip_p_value(statistic: Callable[[torch.Tensor], torch.Tensor], count: int, *, draws: int = 999, seed: int = 0) -> float:
    """P-value: how often random signs of `count` exchangeable differences give a statistic as large as that of all signs +1.

    `statistic` maps signs (draws, count), float64, to values (draws,). All 2^count combinations are tried if there are at
    most `draws` of them. Source: Fisher 1935, section 21.
    """
    from scipy.stats import permutation_test

    def of_signs(signs: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return statistic(torch.from_numpy(np.array(signs, ndmin=2))).numpy().reshape(signs.shape[:-1])

    # The data are the signs: one sign for each difference, even if a difference has many entries.
    test = permutation_test(
        (np.ones(count),),
        of_signs,
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)
