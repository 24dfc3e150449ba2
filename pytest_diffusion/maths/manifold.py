"""Improved precision and recall: how much of each side lies within the k-nearest-neighbour manifold of the other."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pytest_diffusion.maths.tensors import ArrayLike, as_matrix, same_width


class PrecisionRecall(NamedTuple):
    """Share of features inside the reference's manifold, and of the reference inside the features'."""

    precision: float
    recall: float


def precision_recall(features: ArrayLike, reference: ArrayLike, *, k: int = 3) -> PrecisionRecall:
    """Precision and recall of features (N, D) against reference (M, D), both in [0, 1].

    A point lies in a manifold when it is no farther from some member than that member's k-th neighbour.
    The distance is Euclidean; equality counts as inside, as in the paper's definition (≤).
    Source: arXiv:1904.06991, equations 1 to 3.
    """
    left, right = as_matrix(features, "features", min_rows=k + 1), as_matrix(reference, "reference", min_rows=k + 1)
    same_width(left, right)
    # Distances are differences of squares: far from the origin they would lose all their digits.
    centre = right.mean(0)
    left, right = left - centre, right - centre
    left_radii, right_radii = _radii(left, k), _radii(right, k)
    precise, recalled = 0, torch.zeros(len(right), dtype=torch.bool)
    for start in range(0, len(left), 1024):
        block = left[start : start + 1024]
        distances = _squared_distances(block, right)
        precise += int((distances <= right_radii).any(1).sum())
        recalled |= (distances <= left_radii[start : start + len(block), None]).any(0)
    return PrecisionRecall(precise / len(left), int(recalled.sum()) / len(right))


def _radii(matrix: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance of each row to its k-th nearest other row: (N,)."""
    radii = []
    for start in range(0, len(matrix), 1024):
        distances = _squared_distances(matrix[start : start + 1024], matrix)
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _squared_distances(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    products = left.square().sum(1)[:, None] + right.square().sum(1) - 2 * left @ right.T
    return products.clamp(min=0)
