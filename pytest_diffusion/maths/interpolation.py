"""Paths between latents: spherical interpolation and what makes a decoded path smooth."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PathFigures(NamedTuple):
    """Largest over mean step, where the largest step begins, and the share of frames that drift away."""

    jump: float
    jump_at: int
    drift: float


def slerp(start: torch.Tensor, end: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """Spherical linear interpolation from `start` (weight 0) to `end` (weight 1), same shape and dtype.

    `weight` is a number, or a tensor (K,) that adds a leading axis. Direction is turned at constant speed
    and length is interpolated linearly, so the ends are exact. Parallel vectors are interpolated linearly.
    Raises ValueError for different shapes, and for antiparallel or zero vectors, between which no arc is shortest.
    Source: Shoemake 1985.
    """
    if start.shape != end.shape:
        raise ValueError(f"start has shape {tuple(start.shape)} and end {tuple(end.shape)}; expected the same.")
    first, last = start.double().flatten(), end.double().flatten()
    lengths = first.norm(), last.norm()
    if min(lengths) == 0:
        raise ValueError("start or end is the zero vector, which has no direction.")
    cosine = float((first @ last / (lengths[0] * lengths[1])).clamp(-1, 1))
    if cosine < -1 + 1e-10:
        raise ValueError("start and end are antiparallel: every great circle through them is equally short.")
    weights = torch.as_tensor(weight, dtype=torch.float64, device=start.device)
    column = weights.reshape(-1, 1)
    angle = torch.acos(torch.tensor(cosine, dtype=torch.float64))
    if cosine > 1 - 1e-10:
        path = (1 - column) * first + column * last
    else:
        turned = ((1 - column) * angle).sin() * first / lengths[0] + (column * angle).sin() * last / lengths[1]
        path = turned / angle.sin() * ((1 - column) * lengths[0] + column * lengths[1])
    return path.reshape(*weights.shape, *start.shape).to(start.dtype)


def path_figures(frames: torch.Tensor) -> PathFigures:
    """Figures of a path of frames (K, ...), K ≥ 3, by Euclidean distance between flattened frames.

    `drift` is the share of steps on which the distance from the first frame does not fall.
    """
    flat = frames.double().flatten(1)
    if len(flat) < 3:
        raise ValueError(f"A path of {len(flat)} frames has no inner step; at least 3 are needed.")
    steps = (flat[1:] - flat[:-1]).norm(dim=1)
    away = (flat - flat[0]).norm(dim=1)
    rises = (away[1:] >= away[:-1] - 1e-9 * away.max()).double()
    mean = float(steps.mean())
    return PathFigures(float(steps.max()) / mean if mean > 0 else float("nan"), int(steps.argmax()), float(rises.mean()))
