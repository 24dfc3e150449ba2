"""Kernel distance (KID): the unbiased squared maximum mean discrepancy with the cubic polynomial kernel."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pytest_diffusion.maths.tensors import ArrayLike, as_matrix, same_width


class KernelEstimate(NamedTuple):
    """Unbiased estimate and its standard error."""

    value: float
    standard_error: float


def kernel_distance(features: ArrayLike, reference: ArrayLike) -> float:
    """Squared MMD between features (N, D) and reference (M, D) on all samples, without subset noise.

    Kernel (x·y/D + 1)³; unbiased, so it may be slightly negative. Source: arXiv:1801.01401.
    """
    return kernel_estimate(features, reference).value


def kernel_estimate(features: ArrayLike, reference: ArrayLike) -> KernelEstimate:
    """`kernel_distance` with a standard error from the first-order influence of each sample."""
    left, right = as_matrix(features, "features", min_rows=2), as_matrix(reference, "reference", min_rows=2)
    same_width(left, right)
    own_left, own_right = _mean_over_others(left), _mean_over_others(right)
    cross_left, cross_right = _cross_means(left, right)
    value = float(own_left.mean() + own_right.mean() - 2 * cross_left.mean())
    variance = 4 * float((own_left - cross_left).var()) / len(left) + 4 * float((own_right - cross_right).var()) / len(right)
    # Where both sides follow one law the first-order term vanishes and the second-order one rules.
    spread = 2 * (float(own_left.var()) / len(left) ** 2 + float(own_right.var()) / len(right) ** 2)
    return KernelEstimate(value, math.sqrt(variance + spread))


def _kernel(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left @ right.T / left.shape[1] + 1) ** 3


def _mean_over_others(matrix: torch.Tensor) -> torch.Tensor:
    """For each row, the mean kernel with all other rows: (N,)."""
    own = (matrix.square().sum(1) / matrix.shape[1] + 1) ** 3
    sums = torch.cat([_kernel(block, matrix).sum(1) for block in matrix.split(1024)])
    return (sums - own) / (len(matrix) - 1)


def _cross_means(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean kernel of each row of `left` with `right`, and of each row of `right` with `left`."""
    rows, columns = [], torch.zeros(len(right), dtype=left.dtype)
    for block in left.split(1024):
        products = _kernel(block, right)
        rows.append(products.mean(1))
        columns += products.sum(0)
    return torch.cat(rows), columns / len(left)
