"""Paths between latents: spherical interpolation, and figures of the smoothness of a decoded path."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

_SMALL_ANGLE = 1e-7
"""Radians. Below this angle, sin(angle) has lost half of its digits, and an arc equals its chord to 1e-14."""


class PathFigures(NamedTuple):
    """How smooth a path of frames is, by Euclidean distances between flattened frames."""

    jump: float
    """Largest step divided by the mean step; 1 for equal steps, the number of steps for a single jump."""
    jump_at: int
    """Index of the frame before the largest step."""
    drift: float
    """Share of steps on which the distance from the first frame does not decrease."""
    over_chord: float
    """Length of the path divided by the distance between its ends; 1 for a straight line, inf for a closed path."""
    curvature: float
    """Mean angle in degrees between successive steps; 0 for a straight line, 90 for a random walk."""


def slerp(start: torch.Tensor, end: torch.Tensor, weight: float | torch.Tensor, *, batch_dims: int = 0) -> torch.Tensor:
    """Spherical linear interpolation from `start` (weight 0) to `end` (weight 1), same shape and dtype.

    The first `batch_dims` axes are batch axes, and all others form one vector: latents (N, C, h, w) need
    `batch_dims=1`. `weight` is a number, or a tensor (K,) that adds a leading axis. The direction turns at
    constant speed and the length changes linearly, so the ends are exact.

    The path is also defined where there is no unique arc. Parallel vectors, and pairs with a zero vector, are
    joined by a straight line. Antiparallel vectors are joined by the half circle through a fixed perpendicular
    direction (each pair of coordinates turned by a quarter). Raises ValueError for different shapes, and for
    antiparallel vectors with one coordinate. Source: Shoemake 1985.
    """
    if start.shape != end.shape:
        raise ValueError(f"start has shape {tuple(start.shape)} and end {tuple(end.shape)}; expected the same.")
    shape = start.shape[:batch_dims]
    first, last = (side.double().reshape(math.prod(shape), -1) for side in (start, end))
    lengths = [side.norm(dim=1, keepdim=True) for side in (first, last)]
    units = [side / length.clamp(min=1e-300) for side, length in zip((first, last), lengths, strict=True)]
    # More accurate than arccos, which loses digits near 0 and π.
    angle = 2 * torch.atan2((units[0] - units[1]).norm(dim=1, keepdim=True), (units[0] + units[1]).norm(dim=1, keepdim=True))
    has_zero = (lengths[0] == 0) | (lengths[1] == 0)
    straight = has_zero | (angle < _SMALL_ANGLE)
    opposite = ~has_zero & (angle > math.pi - _SMALL_ANGLE)
    weights = torch.as_tensor(weight, dtype=torch.float64, device=start.device)
    column = weights.reshape(-1, 1, 1)
    length = (1 - column) * lengths[0] + column * lengths[1]
    sine = torch.where(straight | opposite, torch.ones_like(angle), angle.sin())
    path = length * (((1 - column) * angle).sin() * units[0] + (column * angle).sin() * units[1]) / sine
    if bool(opposite.any()):
        half_turn = length * ((column * math.pi).cos() * units[0] + (column * math.pi).sin() * _perpendicular(units[0]))
        path = torch.where(opposite, half_turn, path)
    path = torch.where(straight, (1 - column) * first + column * last, path)
    return path.reshape(*weights.shape, *start.shape).to(start.dtype)


def path_figures(frames: torch.Tensor) -> PathFigures:
    """Figures of a path of frames (K, ...), K ≥ 3. Raises ValueError for fewer; nan if all frames are equal."""
    flat = frames.double().flatten(1)
    if len(flat) < 3:
        raise ValueError(f"A path of {len(flat)} frames has no inner step; at least 3 are needed.")
    moves = flat[1:] - flat[:-1]
    steps = moves.norm(dim=1)
    away = (flat - flat[0]).norm(dim=1)
    rises = (away[1:] >= away[:-1] - 1e-9 * away.max()).double()
    mean, chord = float(steps.mean()), float(away[-1])
    if mean == 0:
        return PathFigures(math.nan, 0, 1.0, math.nan, math.nan)
    # A step of length 0 has no direction.
    moving = (steps[1:] > 0) & (steps[:-1] > 0)
    cosines = torch.nn.functional.cosine_similarity(moves[1:], moves[:-1], dim=1)[moving].clamp(-1, 1)
    curvature = float(cosines.arccos().rad2deg().mean()) if len(cosines) else math.nan
    length = float(steps.sum())
    return PathFigures(
        float(steps.max()) / mean, int(steps.argmax()), float(rises.mean()), length / chord if chord else math.inf, curvature
    )


def _perpendicular(units: torch.Tensor) -> torch.Tensor:
    """Unit vectors (N, D), each perpendicular to its row of `units`; equal rows give equal results."""
    count, size = units.shape
    if size < 2:
        raise ValueError("start and end are antiparallel vectors with one coordinate: no half circle connects them.")
    turned = torch.zeros_like(units)
    even = size - size % 2
    turned[:, 0:even:2], turned[:, 1:even:2] = -units[:, 1:even:2], units[:, 0:even:2]
    # The last of an odd number of coordinates has no partner. If it holds nearly all of the length, the first axis is used.
    norm = turned.norm(dim=1, keepdim=True)
    axis = torch.zeros_like(units)
    axis[:, 0] = 1
    axis = axis - (axis * units).sum(1, keepdim=True) * units
    return torch.where(norm > 1e-6, turned / norm.clamp(min=1e-300), axis / axis.norm(dim=1, keepdim=True).clamp(min=1e-300)).reshape(
        count, size
    )
