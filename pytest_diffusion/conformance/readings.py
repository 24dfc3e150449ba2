"""Noise levels of a scheduler whose attributes do not tell them: read off its own noising, or by what the caller declares."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.noising import noised
from pytest_diffusion.models.levels import Kind, NoiseLevel
from pytest_diffusion.models.schedulers import as_values, num_train_timesteps

_NEAR = 1e-3


class Reading(NamedTuple):
    """The form of the samples, the noise level at each planned timestep, and the level after the last step."""

    kind: Kind
    levels: list[NoiseLevel]
    end: NoiseLevel


def read_off(scheduler: Any, method: str) -> Reading | None:
    """Levels of a planned scheduler, from images that are all 1 with noise that is all 0, and the reverse, at its own timesteps.

    None where its noising is no weighted sum of image and noise, or the levels do not fall along the plan.
    """
    ones, zeros = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    found = []
    for timestep in as_values(scheduler.timesteps):
        try:
            weights = [
                noised(copy.deepcopy(scheduler), method, image, noise, timestep.reshape(1))
                for image, noise in ((ones, zeros), (zeros, ones))
            ]
        except Crash:
            return None
        if any(float((one - one.mean()).abs().max()) > _NEAR or not bool(one.isfinite().all()) for one in weights):
            return None
        alpha, sigma = (one.mean().double() for one in weights)
        found.append(NoiseLevel(alpha, sigma))
    kind = _kind_of(found)
    ratios = [float(level.sigma) / max(float(level.alpha), 1e-12) for level in found]
    if kind is None or any(after > before for before, after in pairwise(ratios)):
        return None
    return Reading(kind, found, _end(scheduler, kind, found))


def declared_levels(scheduler: Any, kind: Kind, *, rises: bool) -> Reading | None:
    """Levels of a planned scheduler of a declared kind, by its sigmas; of a flow without sigmas, by timesteps that are shares.

    With `rises`, time goes from noise to data.
    """
    count = len(scheduler.timesteps)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) in (count, count + 1):
        values = as_values(sigmas).double()
    elif kind == "flow":
        values = as_values(scheduler.timesteps).double()
        values = values if float(values.max()) <= 1 else values / num_train_timesteps(scheduler)
    else:
        return None
    if kind == "flow" and (rises or float(values[0]) < float(values[-1])):
        values = 1 - values  # time goes from noise to data
    if len(values) == count:
        values = torch.cat([values, torch.zeros(1, dtype=torch.float64)])
    if kind == "flow":
        levels = [NoiseLevel(1 - value, value) for value in values]
    elif kind == "vp":
        levels = [NoiseLevel.of_ratio(value) for value in values]
    else:
        levels = [NoiseLevel(torch.ones_like(value), value) for value in values]
    return Reading(kind, levels[:-1], levels[-1])


def _kind_of(levels: list[NoiseLevel]) -> Kind | None:
    alphas, sigmas = (torch.stack([getattr(level, name) for level in levels]) for name in ("alpha", "sigma"))
    if float((alphas + sigmas - 1).abs().max()) < _NEAR:
        return "flow"
    if float((alphas.square() + sigmas.square() - 1).abs().max()) < _NEAR:
        return "vp"
    return "sigma" if float((alphas - 1).abs().max()) < _NEAR else None


def _end(scheduler: Any, kind: Kind, levels: list[NoiseLevel]) -> NoiseLevel:
    """The level after the last step: by the last sigma where there is one more than timesteps, else the clean image."""
    sigmas = getattr(scheduler, "sigmas", None)
    sigma = torch.zeros((), dtype=torch.float64)
    if sigmas is not None and len(sigmas) == len(levels) + 1:
        values = as_values(sigmas).double()
        seen = torch.stack([level.sigma for level in levels])
        # A flow's may be the time towards the data.
        rises = kind == "flow" and float((1 - values[:-1] - seen).abs().sum()) < float((values[:-1] - seen).abs().sum())
        sigma = 1 - values[-1] if rises else values[-1]
    sigma = sigma if 0 <= float(sigma) < 1 or kind == "sigma" else torch.zeros((), dtype=torch.float64)
    if kind == "vp":
        return NoiseLevel.of_ratio(sigma)
    return NoiseLevel(1 - sigma if kind == "flow" else torch.ones_like(sigma), sigma)
