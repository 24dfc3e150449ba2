"""Differences of two models on the same work: their mean, and its error where several pairs share a prompt."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch

from pytest_diffusion.maths.statistics import Estimate
from pytest_diffusion.maths.tensors import ArrayLike, require_finite


def paired_mean(differences: ArrayLike, clusters: Sequence[Hashable] | None = None, *, unseen: float = 0.0) -> Estimate:
    """Mean of differences (N,) with a standard error that counts pairs of one cluster (such as a prompt) together.

    `unseen` is the size of a difference that may be too rare to have been seen yet, in the units of the differences. The error is
    that of the data with four more clusters, two of them so much better and two so much worse on each of their pairs: without it, a
    few hundred equal pairs would prove that no prompt is lost. Degrees of freedom: clusters less one.
    Raises ValueError for another shape, non-finite entries, and another number of clusters than pairs.
    Source: Liang & Zeger 1986 for the clustered error, with the factor G/(G − 1); the four clusters follow the pseudo-observations
    of Agresti & Coull 1998.
    """
    values = _as_vector(differences)
    totals, counts = _cluster_sums(values, clusters)
    number = len(totals)
    mean = float(values.mean())
    if number < 2:
        return Estimate(mean, math.inf, 0)
    residuals = totals - counts * mean
    variance = number / (number - 1) * float(residuals.square().sum()) / len(values) ** 2 + 4 * (unseen / number) ** 2
    return Estimate(mean, math.sqrt(variance), number - 1)


def _as_vector(differences: ArrayLike) -> torch.Tensor:
    values = torch.as_tensor(differences).detach().to("cpu", torch.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"differences have shape {tuple(values.shape)}; expected (N,) with at least one pair.")
    require_finite(values, "differences")
    return values


def _cluster_sums(values: torch.Tensor, clusters: Sequence[Hashable] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the values of each cluster, and how many there are: both (G,)."""
    place = _places(len(values), clusters)
    number = int(place.max()) + 1
    totals = torch.zeros(number, dtype=torch.float64).index_add_(0, place, values)
    return totals, torch.bincount(place, minlength=number).double()


def _places(count: int, clusters: Sequence[Hashable] | None) -> torch.Tensor:
    """The number of each pair's cluster, (count,), in the order in which clusters are met."""
    if clusters is None:
        return torch.arange(count)
    if len(clusters) != count:
        raise ValueError(f"{len(clusters)} clusters for {count} pairs; expected one for each pair.")
    known: dict[Hashable, int] = {}
    return torch.tensor([known.setdefault(cluster, len(known)) for cluster in clusters])
