"""Kernel distances: KID with the cubic polynomial kernel, and CMMD with the Gaussian one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch

from pytest_diffusion.maths.statistics import Estimate
from pytest_diffusion.maths.tensors import ArrayLike, as_rows, mean_of_rows, same_width, shifted

_BLOCK = 1024
_LARGE = 2e9
"""Number of multiplications above which products are formed in float32. Sums stay in float64; the relative error is 1e-7."""
Kernel: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def kernel_distance(features: ArrayLike, reference: ArrayLike) -> float:
    """Squared MMD between features (N, D) and reference (M, D) on all samples, without subset noise.

    Kernel (x·y/D + 1)³; unbiased, so it may be slightly negative. Source: arXiv:1801.01401.
    """
    return kernel_estimate(features, reference).value


def kernel_estimate(features: ArrayLike, reference: ArrayLike, *, given_reference: bool = False) -> Estimate:
    """`kernel_distance` with a standard error from the influence of each sample, of first and of second order.

    With `given_reference`, the error is that of the samples alone: the reference is the same in every run.
    """
    left, right = _pair(features, reference)
    means = _Means.of(left, right, _polynomial, unbiased=True)
    return Estimate(means.distance, means.error(given_reference=given_reference))


def kernel_influences(features: ArrayLike, reference: ArrayLike) -> torch.Tensor:
    """What each of the features (N, D) contributes to `kernel_distance`, to first order: (N,), float64, with mean 0."""
    left, right = _pair(features, reference)
    means = _Means.of(left, right, _polynomial, unbiased=True)
    own = 2 * (means.own_left - means.cross_left)
    return own - own.mean()


def kernel_distance_subsets(
    features: ArrayLike, reference: ArrayLike, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """Mean of the unbiased KID over random subsets, and the standard deviation between them (not an error).

    The protocol of torch-fidelity and torchmetrics, for comparison with figures from these tools; `kernel_distance`
    has no subset noise. Raises ValueError if a side has fewer rows than `subset_size`.
    """
    left, right = _pair(features, reference)
    if min(len(left), len(right)) < subset_size:
        raise ValueError(f"subset_size is {subset_size}; the sides have {len(left)} and {len(right)} rows.")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        pair = [side[torch.randperm(len(side), generator=generator)[:subset_size]] for side in (left, right)]
        values.append(_Means.of(pair[0], pair[1], _polynomial, unbiased=True).distance)
    spread = float(torch.tensor(values, dtype=torch.float64).std()) if subsets > 1 else math.nan
    return Estimate(math.fsum(values) / subsets, spread)


def cmmd(features: ArrayLike, reference: ArrayLike, *, sigma: float = 10.0) -> float:
    """1000 times the squared MMD with the kernel exp(−‖x−y‖²/2σ²), of CLIP image features (N, D) and (M, D).

    The biased estimator, as in the paper. Features are used as the extractor returns them; those of CLIP have
    unit length. Source: arXiv:2401.09603.
    """
    return cmmd_estimate(features, reference, sigma=sigma).value


def cmmd_estimate(features: ArrayLike, reference: ArrayLike, *, sigma: float = 10.0, given_reference: bool = False) -> Estimate:
    """`cmmd` with a standard error as in `kernel_estimate`."""
    left, right = _pair(features, reference)
    # Squared distances lose digits far from the origin. A shift of both sides does not change the kernel.
    centre = mean_of_rows(right)

    def gaussian(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        squares = one.square().sum(1)[:, None] + other.square().sum(1)
        # In place, because a block of products is as large as everything else together.
        return torch.addmm(squares, one, other.T, alpha=-2).clamp_(min=0).mul_(-0.5 / sigma**2).expm1_()

    left, right = shifted(left, centre, torch.float64), shifted(right, centre, torch.float64)
    means = _Means.of(left, right, gaussian, unbiased=False)
    return Estimate(1000 * means.distance, 1000 * means.error(given_reference=given_reference))


class _Means(NamedTuple):
    """Mean kernel of each row with its own side and with the other side, and the mean squares of all these kernels."""

    own_left: torch.Tensor
    own_right: torch.Tensor
    cross_left: torch.Tensor
    cross_right: torch.Tensor
    squares: tuple[float, float, float]
    """Of left with left, right with right, left with right."""

    @classmethod
    def of(cls, left: torch.Tensor, right: torch.Tensor, kernel: Kernel, *, unbiased: bool) -> _Means:
        work = float(len(left) + len(right)) ** 2 * left.shape[1]
        dtype = torch.float32 if work > _LARGE else torch.float64
        left, right = left.to(dtype), right.to(dtype)
        own = [_own_means(side, kernel, unbiased) for side in (left, right)]
        *cross, square = _cross_means(left, right, kernel)
        return cls(own[0][0], own[1][0], cross[0], cross[1], (own[0][1], own[1][1], square))

    @property
    def distance(self) -> float:
        return float(self.own_left.mean() + self.own_right.mean() - 2 * self.cross_left.mean())

    def error(self, *, given_reference: bool) -> float:
        """Standard error of `distance`.

        The variance of a row's means is that of its influence, and the noise of a mean over few others. That noise is
        twice the second-order variance of the distance, so one half of it is taken off. Where both laws are the same,
        only the second-order part is left, and nothing less is possible. Source: Hoeffding 1948, for two samples.
        """
        left, right = len(self.own_left), len(self.own_right)
        first = 4 * float((self.own_left - self.cross_left).var()) / left
        second = 2 * _pure(self.squares[0], self.own_left, self.own_left) / left**2
        if not given_reference:
            first += 4 * float((self.own_right - self.cross_right).var()) / right
            second += 2 * _pure(self.squares[1], self.own_right, self.own_right) / right**2
            second += 4 * _pure(self.squares[2], self.cross_left, self.cross_right) / (left * right)
        return math.sqrt(max(first - second, second))


def _pure(square: float, rows: torch.Tensor, columns: torch.Tensor) -> float:
    """Variance of a kernel less what its row means and column means explain; at least 0."""
    return max(square - float(rows.mean()) ** 2 - float(rows.var()) - float(columns.var()), 0.0)


def _polynomial(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    products = torch.addmm(torch.ones((), dtype=one.dtype), one, other.T, alpha=1 / one.shape[1])
    return products.square().mul_(products)


def _own_means(matrix: torch.Tensor, kernel: Kernel, unbiased: bool) -> tuple[torch.Tensor, float]:
    """For each row, the mean kernel with the other rows, or with all rows: (N,), float64; and the mean square of these kernels.

    Each pair of blocks is computed once.
    """
    sums, square = torch.zeros(len(matrix), dtype=torch.float64), 0.0
    for start, rows in _blocks(matrix):
        for other_start, others in _blocks(matrix[start:]):
            values = kernel(rows, others)
            if other_start == 0:
                if unbiased:
                    values.fill_diagonal_(0)
                sums[start : start + len(rows)] += values.sum(1)
            else:
                sums[start : start + len(rows)] += values.sum(1)
                first = start + other_start
                sums[first : first + len(others)] += values.sum(0)
            square += (1 if other_start == 0 else 2) * _sum_of_squares(values)
    others_of_a_row = len(matrix) - 1 if unbiased else len(matrix)
    return sums / others_of_a_row, square / (len(matrix) * others_of_a_row)


def _cross_means(left: torch.Tensor, right: torch.Tensor, kernel: Kernel) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean kernel of each row of `left` with `right`, of each row of `right` with `left`, float64, and the mean square."""
    rows, columns = (torch.zeros(len(side), dtype=torch.float64) for side in (left, right))
    square = 0.0
    for start, one in _blocks(left):
        for other_start, other in _blocks(right):
            values = kernel(one, other)
            rows[start : start + len(one)] += values.sum(1)
            columns[other_start : other_start + len(other)] += values.sum(0)
            square += _sum_of_squares(values)
    return rows / len(right), columns / len(left), square / (len(left) * len(right))


def _sum_of_squares(values: torch.Tensor) -> float:
    """The sum of the squares of a block, which is overwritten: in float32, sums of single rows keep the digits."""
    return float(values.square_().sum(1).double().sum())


def _blocks(matrix: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    return ((start, matrix[start : start + _BLOCK]) for start in range(0, len(matrix), _BLOCK))


def _pair(features: ArrayLike, reference: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = as_rows(features, "features", min_rows=2), as_rows(reference, "reference", min_rows=2)
    same_width(left, right)
    return left, right
