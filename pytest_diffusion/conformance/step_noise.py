"""Laws of the noise that a step adds: it has the declared amount, and is white and normal."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from pytest_diffusion.conformance import loops
from pytest_diffusion.conformance.arrivals import SHAPE, Arrival, arrivals, forward_deviation, has_unseen_memory, posterior_deviation
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.laws import Broken, Claims, law
from pytest_diffusion.conformance.randomness import Draw
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.levels import NoiseLevel
from pytest_diffusion.models.schedulers import config_value
from pytest_diffusion.verdicts.errors import NotApplicable

Claim = tuple[str, dict[str, Any], Callable[[NoiseLevel, NoiseLevel], float]]
"""A text, arguments of the loop, and the deviation that is claimed of a step between two levels."""


@law(
    "the noise of a step is of the amount that is claimed",
    source="arXiv:2010.02502, equation 16; arXiv:2006.11239, equation 7; arXiv:2102.09672, equation 15",
    counts=(3, 10, 25),
    least=2,
    rests_on=("point_mass_preserved",),
)
def noise_amount(subject: Subject, counts: Sequence[int]) -> None:
    """The standard deviation of the new noise must be η times that of the posterior, so that η = 1 is DDPM.

    `variance_type` and SDE solvers declare an amount too, and their steps must add that amount.
    """
    claims = _claims(subject)
    if not claims:
        raise NotApplicable(f"{subject.name} declares no amount of noise (no eta, no variance_type, no SDE solver).")
    tried = Claims()
    for count in subject.counts(*counts):
        for claim in claims:
            with tried.next():
                _require_amount(subject, claim, count, is_most=claim is claims[-1])
    tried.settle()


def _require_amount(subject: Subject, claim: Claim, count: int, *, is_most: bool) -> None:
    """Raise Broken unless each step adds the claimed noise. The most noise leaves the least of the rest."""
    text, extras, wanted = claim
    if is_most and count <= loops.LARGE_STEPS:
        loops.require_finite_at_any_rounding(subject, count, **extras)
    for one in arrivals(subject, count, **extras)[:-1]:
        expected = wanted(one.step.level, one.target)
        if not abs(one.fresh - expected) <= 2 * one.tolerance + 1e-3 * expected:
            seen = f"step {one.number} (timestep {one.step.timestep:g}) adds {one.fresh:.5g}·noise"
            raise Broken(f"{expected:.5g}·noise with {text}", seen, count=count)


def _share(eta: float) -> Callable[[NoiseLevel, NoiseLevel], float]:
    return lambda level, target: eta * posterior_deviation(level, target)


def _half_way(level: NoiseLevel, target: NoiseLevel) -> float:
    """Geometric mean of the two standard deviations (arXiv:2102.09672, equation 15)."""
    return math.sqrt(posterior_deviation(level, target) * forward_deviation(level, target))


def _claims(subject: Subject) -> list[Claim]:
    choice = config_value(subject.scheduler, "variance_type")
    solver = str(config_value(subject.scheduler, "algorithm_type") or "")
    if "eta" in subject.step_parameters and subject.kind == "vp":
        if "original_inference_steps" in subject.config:
            return []  # eta has another meaning in consistency models
        if subject.step_parameters["eta"].default not in (0, inspect.Parameter.empty):
            return []  # and where it is not 0 by default (TCD's gamma)
        return [(f"eta={eta:g}", {"eta": eta}, _share(eta)) for eta in (0.0, 0.5, 1.0)]
    if choice in ("fixed_small", "fixed_small_log"):
        return [(f"variance_type={choice!r}", {}, posterior_deviation)]
    if choice in ("fixed_large", "fixed_large_log"):
        return [(f"variance_type={choice!r}", {}, forward_deviation)]
    if choice == "learned_range":
        return [
            ("variance_type='learned_range' and the model's variance at −1, the smallest", {"variance": -1.0}, posterior_deviation),
            ("variance_type='learned_range' and the model's variance at 1, the largest", {"variance": 1.0}, forward_deviation),
            ("variance_type='learned_range' and the model's variance half-way, in its logarithm", {"variance": 0.0}, _half_way),
        ]
    if choice == "learned":
        return [("variance_type='learned' and a predicted variance of 0.01", {"variance": 0.01}, lambda level, to: 0.1)]
    # The second stage of a single-step solver starts again at the start of its first stage.
    if solver == "sde-dpmsolver++" and not hasattr(subject.scheduler, "order_list"):
        return [(f"algorithm_type={solver!r}", {}, posterior_deviation)]
    return []


@law(
    "drawn noise is standard normal and independent for every element",
    source="arXiv:2006.11239, algorithm 2, line 3",
    counts=(4,),
)
def noise_is_normal(subject: Subject, counts: Sequence[int]) -> None:
    """The noise that a step adds must be white Gaussian noise of the sample's shape, drawn by torch.

    Every image of a batch must get its own noise.
    """
    for count in subject.counts(*counts):
        try:
            found = arrivals(subject, count, **subject.noisy)
            loops.require_finite_at_any_rounding(subject, count, **subject.noisy)
        except Crash as crash:
            if isinstance(crash.error, FloatingPointError):
                raise NotApplicable(f"{subject.name} gives NaN or infinite samples: see `noise_amount` and `dtype_kept`.") from crash
            raise
        follows_a_path = max(len(one.step.draws) for one in found) > 4
        for one in found:
            for weight, draw in zip(one.added, one.step.draws, strict=False):
                if abs(weight) > 10 * one.tolerance:
                    _require_white(draw, one, count)
            if one.rest > 10 * one.tolerance and subject.is_adapted and not any(part.step.draws for part in found):
                raise NotApplicable(f"{subject.name} adds noise that torch does not draw, which cannot be looked at.")
            if one.rest > 10 * one.tolerance and not follows_a_path and not has_unseen_memory(subject, one):
                seen = f"step {one.number} changes its samples by {one.rest:.4g} that none of these explains"
                raise Broken("a step that only combines image, noise and torch's draws", seen, count=count)


def _require_white(draw: Draw, one: Arrival, count: int) -> None:
    if not draw.normal and draw.operator != "normal":
        raise Broken("noise from a normal distribution", f"step {one.number} draws it by torch's {draw.operator}", count=count)
    if draw.values.numel() < math.prod(SHAPE) and draw.values.shape[:1] != (1,):
        raise Broken(f"noise of the sample's shape {SHAPE}", f"step {one.number} draws {tuple(draw.values.shape)}", count=count)
    if draw.values.numel() < math.prod(SHAPE):
        seen = f"step {one.number} draws {tuple(draw.values.shape)} and adds the same noise to all images"
        raise Broken(f"separate noise for each image of a batch of {SHAPE[0]}", seen, count=count)
