"""The plan of a flow against its training schedule: both must be the same grid, under one shift."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch

from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.laws import Broken
from pytest_diffusion.conformance.noising import noised
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import as_values, attribute, config_value, is_set
from pytest_diffusion.verdicts.errors import NotApplicable

SHAPES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "sigma_schedule")
"""Entries of the configuration that reshape the sigmas of a plan."""

_PLAN_ARGUMENTS = ("device", "mu", "sigmas", "timesteps", "shift", "flow_shift")


def without_repeats(sigmas: torch.Tensor) -> torch.Tensor:
    """Sigmas without those that equal their predecessor up to rounding."""
    return torch.cat([sigmas[:1], sigmas[1:][(sigmas[1:] - sigmas[:-1]).abs() > 1e-9 * sigmas[:-1].abs()]])


def require_training_grid(subject: Subject) -> None:
    """Raise Broken if a flow with as many inference steps as training steps does not use the training schedule.

    Both are compared without their shift, to within one training step. A class may train without the shift that it plans with.
    """
    total = subject.num_train_timesteps
    fresh = subject.fresh()
    trained = attribute(fresh, "sigmas")
    shift = declared_shift(subject)
    if own_arguments := [name for name in subject.plan_arguments if name not in ("shift", "flow_shift", "device")]:
        raise NotApplicable(f"{subject.name} has a plan that is shaped by {own_arguments[0]}, as declared.")
    others = [name for name in (*SHAPES, "use_dynamic_shifting", "invert_sigmas") if is_set(subject.scheduler, name)]
    others += [name for name in subject.config if "shift" in name and name not in ("shift", "flow_shift") and _is_shaping(subject, name)]
    if others or trained is None or len(trained) not in (total, total + 1):
        raise NotApplicable(f"{subject.name} uses {others[0] if others else 'shares of noise'} for its plan, not its training schedule.")
    if not _noises_by(subject, fresh):
        raise NotApplicable(
            f"{subject.name} does not add noise by the sigmas that it has before planning, so they are no training schedule."
        )
    if not subject.counts(total):
        raise NotApplicable(f"{subject.name} has no plan of {total} steps, which its training schedule would be.")
    own = as_values(trained)[:total].double()
    own = own if float(own[0]) > float(own[-1]) else own.flip(0)
    planned = _sigmas_of_training_length(subject)
    # Training has the shift if it is even without it.
    even = unshifted(own, shift) if _unevenness(unshifted(own, shift)) < _unevenness(own) else own
    gap = (unshifted(planned, shift) - even).abs() if len(planned) == total else torch.full((1,), torch.inf)
    place = int(gap.argmax())
    if float(gap[place]) > 1.01 / total:
        if (shaping := _shaping_argument(subject, planned)) is not None:
            raise NotApplicable(f"{subject.name} shapes its plan by {shaping}, by a formula of its own.")
        off = f"{float(gap[place]) * total:.3g} training steps"
        seen = f"number {place} of the plan lies {off} from sigma {float(own[place]):.5g} of training (both without the shift {shift:g})"
        raise Broken(f"the {total} sigmas of training in a plan of {total} steps", seen, count=total)


def _sigmas_of_training_length(subject: Subject, **arguments: Any) -> torch.Tensor:
    """The sigmas of a plan with as many steps as in training, from noisy to clean, without the end."""
    planned = as_values(subject.planned(subject.num_train_timesteps, **arguments).sigmas).double()
    return without_repeats(planned if float(planned[0]) > float(planned[-1]) else planned.flip(0))[: subject.num_train_timesteps]


def _shaping_argument(subject: Subject, planned: torch.Tensor) -> str | None:
    """The argument of `set_timesteps`, besides those of diffusers, whose value changes the plan, as the size of the image does for some."""
    for name, parameter in list(subject.plan_parameters.items())[1:]:
        value = parameter.default
        if name in _PLAN_ARGUMENTS or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        try:
            other = _sigmas_of_training_length(subject, **{name: 2 * value or 1})
        except Crash:
            continue
        if len(other) != len(planned) or not torch.allclose(other, planned, atol=1 / subject.num_train_timesteps):
            return name
    return None


def declared_shift(subject: Subject) -> float:
    """The static shift of a flow's plan: as the caller declared it, else by the parameter's default, the configuration or an attribute."""
    parameters = inspect.signature(subject.scheduler.set_timesteps).parameters
    for name in ("shift", "flow_shift"):
        default = parameters[name].default if name in parameters else None
        for value in (
            subject.plan_arguments.get(name),
            default,
            config_value(subject.scheduler, name),
            getattr(subject.scheduler, name, None),
        ):
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                return float(value)
    return 1.0


def unshifted(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Sigmas before a shift s, which makes s·σ / (1 + (s − 1)·σ) of each (arXiv:2403.03206, equation 23)."""
    return sigmas / (shift - (shift - 1) * sigmas)


def _unevenness(sigmas: torch.Tensor) -> float:
    steps = sigmas[1:] - sigmas[:-1]
    return float(steps.std() / steps.mean().abs())


def _is_shaping(subject: Subject, name: str) -> bool:
    """Whether an entry about shifts has an effect by itself: numbers are bounds and bases of a shift that a switch turns on."""
    value = config_value(subject.scheduler, name)
    return (
        (value is True or name == "shift_terminal" or isinstance(value, str))
        and is_set(subject.scheduler, name)
        and name != "time_shift_type"
    )


def _noises_by(subject: Subject, fresh: Any) -> bool:
    """Whether noising before planning uses the sigmas that the scheduler has then, at its own timesteps."""
    method, timesteps = subject.noising, attribute(fresh, "timesteps")
    if method is None or timesteps is None or len(timesteps) < 3:
        return False
    shape = (1, 1, 2, 2)
    for place in (0, len(timesteps) // 2, len(timesteps) - 1):
        try:
            got = noised(copy.deepcopy(fresh), method, torch.zeros(shape), torch.ones(shape), as_values(timesteps)[[place]])
        except Crash:
            return False
        if abs(float(got.mean()) - float(as_values(fresh.sigmas)[place])) > 1e-3:
            return False
    return True
