"""Precision, recall, density and coverage: how samples and reference lie in each other's nearest-neighbour manifold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from pytest_diffusion.maths.statistics import Estimate
from pytest_diffusion.maths.tensors import ArrayLike, as_rows, mean_of_rows, same_width, shifted

_BLOCK = 1024
_LARGE = 2e9
"""Number of multiplications above which distances are formed in float32, on centred features."""
_REPEATS = 24


class PrecisionRecall(NamedTuple):
    """Share of features inside the reference's manifold, and of the reference inside the features'."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Mean number of reference balls around a feature, divided by k (may exceed 1), and share of balls that contain a feature."""

    density: float
    coverage: float


class ManifoldScores(NamedTuple):
    """Precision, recall, density and coverage at the same k."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(features: ArrayLike, reference: ArrayLike, *, k: int = 3) -> PrecisionRecall:
    """Precision and recall of features (N, D) against reference (M, D), both in [0, 1].

    A point lies in a manifold if it is no farther from some member than that member's k-th nearest neighbour.
    The distance is Euclidean; equality counts as inside, as in the paper's definition (≤).
    Source: arXiv:1904.06991, equations 1 to 3.
    """
    left, right = _pair(features, reference, k)
    precision, recall, _, _ = _shares(left, right, _whole(left, k), _whole(right, k), k)[0].tolist()
    return PrecisionRecall(precision, recall)


def density_coverage(features: ArrayLike, reference: ArrayLike, *, k: int = 5) -> DensityCoverage:
    """Density (≥ 0, 1 for equal distributions) and coverage in [0, 1] of features (N, D) against reference (M, D).

    Both use only the balls around reference points, so outliers among the samples cannot increase them.
    Equality counts as inside, which differs from the authors' code (<) only for ties.
    Source: arXiv:2002.09797, equations 3 and 5.
    """
    left, right = _pair(features, reference, k)
    _, _, density, coverage = _shares(left, right, None, _whole(right, k), k)[0].tolist()
    return DensityCoverage(density, coverage)


def manifold_scores(features: ArrayLike, reference: ArrayLike, *, k: int = 5) -> ManifoldScores:
    """Precision, recall, density and coverage of features (N, D) against reference (M, D) in one pass."""
    left, right = _pair(features, reference, k)
    return ManifoldScores(*_shares(left, right, _whole(left, k), _whole(right, k), k)[0].tolist())


def manifold_estimates(
    features: ArrayLike, reference: ArrayLike, *, k: int, seed: int = 0, given_reference: bool = False
) -> dict[str, Estimate]:
    """Precision, recall, density and coverage at k by name, each with a standard error.

    The errors are the spread over 24 random halves of both sides, drawn with `seed`. A binomial error alone is up to
    three times too small, because the manifold is estimated from samples too. Compared with simulations, the errors
    are right within 10 % at 8 to 16 dimensions, and up to 25 % too large at fewer dimensions.
    With `given_reference` they are those of the samples alone, because the reference is the same in every run: the
    spread over random three quarters of the samples, times √3. Halves are then too far from the whole.
    Source: subsampling, Politis & Romano 1994.
    """
    left, right = _pair(features, reference, k)
    generator = torch.Generator().manual_seed(seed)
    if given_reference:
        own = _radii(left, k, _random_parts(len(left), 0.75, generator))
        other = _whole(right, k).expand(len(own), -1)
    else:
        own, other = (_radii(side, k, _random_parts(len(side), 0.5, generator)) for side in (left, right))
    shares = _shares(left, right, own, other, k)
    errors = shares[1:].std(0) * (math.sqrt(3) if given_reference else 1)
    names = ("precision", "recall", "density", "coverage")
    pairs = zip(shares[0].tolist(), errors.tolist(), strict=True)
    # Errors of halves are a little too large already, so their intervals are normal.
    degrees = _REPEATS - 1 if given_reference else math.inf
    return {name: Estimate(value, error, degrees) for name, (value, error) in zip(names, pairs, strict=True)}


def precision_indicators(features: ArrayLike, reference: ArrayLike, *, k: int = 3) -> torch.Tensor:
    """1 for each of the features (N, D) that lies inside the reference's manifold, else 0: (N,), float64, with precision as its mean."""
    left, right = _pair(features, reference, k)
    radii = _whole(right, k)[0]
    return torch.cat([(_squared_distances(left[rows], right) <= radii).any(1) for rows in _ranges(left)]).double()


def coverage_influences(features: ArrayLike, reference: ArrayLike, *, k: int = 5) -> tuple[float, torch.Tensor]:
    """Coverage, and what each of the features (N, D) contributes to it: (N,), float64.

    Without sample i, those balls are empty that it alone fills; their share of all balls, times N − 1, is its influence.
    Source: the jackknife of Quenouille 1956, in closed form.
    """
    left, right = _pair(features, reference, k)
    radii = _whole(right, k)[0]
    filled, last = torch.zeros(len(right), dtype=torch.int64), torch.zeros(len(right), dtype=torch.int64)
    for rows in _ranges(left):
        hits = _squared_distances(left[rows], right) <= radii
        filled += hits.sum(0)
        last = torch.where(hits.any(0), rows.start + hits.int().argmax(0), last)
    alone = torch.bincount(last[filled == 1], minlength=len(left)).double()
    return float((filled > 0).double().mean()), (len(left) - 1) * alone / len(right)


def nearest_distances(features: torch.Tensor, reference: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances and indices (N, count) of the reference (M, D) nearest to each of the features (N, D), float64."""
    centre = reference.mean(0)
    left, right = features - centre, reference - centre
    found = [_squared_distances(left[rows], right).topk(count, dim=1, largest=False) for rows in _ranges(left)]
    indices = torch.cat([one.indices for one in found])
    # From differences of squares, a copy has a distance of 1e-8 of its length; the difference itself is exact.
    exact = torch.stack([(left - right[one]).square().sum(1) for one in indices.T], dim=1)
    distances, order = exact.sqrt().sort(dim=1)
    return distances, indices.gather(1, order)


def _shares(features: torch.Tensor, reference: torch.Tensor, own: torch.Tensor | None, other: torch.Tensor, k: int) -> torch.Tensor:
    """Precision, recall, density, coverage (R, 4), float64, for R tables of squared radii (R, N) and (R, M).

    A negative radius excludes its point. Without `own`, recall is not computed.
    """
    repeats = len(other)
    inside = torch.zeros(repeats, len(features), dtype=torch.bool)
    balls = torch.zeros(repeats, len(features), dtype=torch.int32)
    recalled, covered = (torch.zeros(repeats, len(reference), dtype=torch.bool) for _ in range(2))
    chosen = own >= 0 if own is not None else torch.ones(1, len(features), dtype=torch.bool)
    for rows in _ranges(features):
        for columns in _ranges(reference):
            distances = _squared_distances(features[rows], reference[columns])
            for repeat in range(repeats):
                hits = distances <= other[repeat, columns]
                balls[repeat, rows] += hits.sum(1, dtype=torch.int32)
                if repeat:
                    hits &= chosen[repeat, rows, None]
                covered[repeat, columns] |= hits.any(0)
                if own is not None:
                    recalled[repeat, columns] |= (distances - own[repeat, rows, None]).amin(0) <= 0
    inside = balls > 0
    kept = other >= 0
    over_rows = [(values.double() * chosen).sum(1) / chosen.sum(1) for values in (inside, balls)]
    over_columns = [(values.double() * kept).sum(1) / kept.sum(1) for values in (recalled, covered)]
    return torch.stack([over_rows[0], over_columns[0], over_rows[1] / k, over_columns[1]], dim=1)


def _whole(matrix: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance of each row to its k-th nearest other row: (1, N)."""
    return _neighbours(matrix, k)[0][None, :, k - 1]


def _random_parts(count: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Which of `count` rows are in each of 24 random parts of this share, (24, count)."""
    chosen = torch.zeros(_REPEATS, count, dtype=torch.bool)
    for row in chosen:
        row[torch.randperm(count, generator=generator)[: int(count * share)]] = True
    return chosen


def _radii(matrix: torch.Tensor, k: int, subsets: torch.Tensor) -> torch.Tensor:
    """Squared radii (1 + R, N) in the whole set and in R subsets (R, N); −1 for a row that is not in the subset."""
    # With a probability of about 1e-3, fewer than k of 4k + 8 neighbours are in a half; then the last one is used.
    distances, indices = _neighbours(matrix, min(4 * k + 8, len(matrix) - 1))
    tables = [distances[:, k - 1]]
    for chosen in subsets:
        place = (chosen[indices].cumsum(1) >= k).int().argmax(1)
        place[chosen[indices].sum(1) < k] = distances.shape[1] - 1
        tables.append(torch.where(chosen, distances.gather(1, place[:, None])[:, 0], -torch.ones(())))
    return torch.stack(tables)


def _neighbours(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distances and indices (N, count) of each row's nearest other rows, nearest first. Each pair is computed once."""
    best = torch.full((len(matrix), count), torch.inf, dtype=matrix.dtype)
    index = torch.zeros(len(matrix), count, dtype=torch.int64)

    def offer(rows: slice, distances: torch.Tensor, first: int) -> None:
        near, place = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
        both, ids = torch.cat([best[rows], near], 1), torch.cat([index[rows], place + first], 1)
        best[rows], order = both.topk(count, dim=1, largest=False)
        index[rows] = ids.gather(1, order)

    for rows in _ranges(matrix):
        for columns in _ranges(matrix):
            if columns.start < rows.start:
                continue
            distances = _squared_distances(matrix[rows], matrix[columns])
            if columns.start == rows.start:
                distances.fill_diagonal_(torch.inf)
            else:
                offer(columns, distances.T.contiguous(), rows.start)
            offer(rows, distances, columns.start)
    return best, index


def _ranges(matrix: torch.Tensor) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, len(matrix))) for start in range(0, len(matrix), _BLOCK))


def _squared_distances(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    squares = left.square().sum(1)[:, None] + right.square().sum(1)
    return torch.addmm(squares, left, right.T, alpha=-2, out=squares).clamp_(min=0)


def _pair(features: ArrayLike, reference: ArrayLike, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = as_rows(features, "features", min_rows=k + 1), as_rows(reference, "reference", min_rows=k + 1)
    same_width(left, right)
    # Distances are differences of squares: far from the origin they would lose all their digits.
    centre = mean_of_rows(right)
    dtype = torch.float32 if float(len(left) + len(right)) ** 2 * left.shape[1] > _LARGE else torch.float64
    return shifted(left, centre, dtype), shifted(right, centre, dtype)
