"""Vendi score: the effective number of different samples, without a reference."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from pytest_diffusion.maths.statistics import Estimate, mean_error
from pytest_diffusion.maths.tensors import ArrayLike, as_matrix


def vendi_score(features: ArrayLike) -> float:
    """Effective number of distinct samples among features (N, D), between 1 and min(N, D), by cosine similarity.

    The exponential of the von Neumann entropy of the similarity matrix divided by N. Its eigenvalues are
    those of the (D, D) second moments, so no (N, N) matrix is formed. Raises ValueError for a feature of
    length 0. Source: arXiv:2210.02410.
    """
    return vendi_estimate(features).value


def vendi_estimate(features: ArrayLike) -> Estimate:
    """`vendi_score` with a standard error from its influence function, −xᵀ (log ρ) x for each unit feature x."""
    score, influences = vendi_influences(features)
    return Estimate(score, mean_error(influences), len(influences) - 1)


def vendi_influences(features: ArrayLike) -> tuple[float, torch.Tensor]:
    """The Vendi score, and what each of the features (N, D) contributes to it, to first order: (N,), float64."""
    matrix = as_matrix(features, "features", min_rows=2)
    lengths = matrix.norm(dim=1)
    if bool((lengths == 0).any()):
        raise ValueError(f"features has a row of length 0, the first at index {int((lengths == 0).nonzero()[0])}: it has no direction.")
    units = F.normalize(matrix, dim=1)
    values, vectors = torch.linalg.eigh(units.T @ units / len(units))
    keep = values > len(values) * torch.finfo(values.dtype).eps
    surprises = -((units @ vectors[:, keep]).square() @ values[keep].log())
    score = math.exp(float(torch.special.entr(values[keep]).sum()))
    return score, score * surprises
