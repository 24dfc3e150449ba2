"""Checks of the noise schedule and the inference timesteps; they need a scheduler and nothing else."""

from __future__ import annotations

import math
from typing import Any

import torch

from pytest_diffusion.checks import plots
from pytest_diffusion.checks.registry import check
from pytest_diffusion.maths.schedule import midway_fall, textbook_log_snr
from pytest_diffusion.models import schedulers
from pytest_diffusion.models.schedulers import Scheduler
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement

STEP_COUNTS = (1, 2, 3, 7, 10, 20, 50)
WARM_UP = 9
"""Evaluations that a warm-up by Runge-Kutta adds at most (PNDM)."""


@check(
    "schedule",
    "ᾱ falls strictly from clean to noisy",
    figure="steps where ᾱ does not fall or leaves (0, 1]",
    sees="swapped, constant or negative betas",
    blind_to="a schedule that is wrong but monotonic",
)
def alphas_cumprod_monotonic(scheduler: Scheduler) -> Measurement:
    """Timesteps at which ᾱ does not fall, or leaves (0, 1]; the last may be 0 (zero terminal SNR)."""
    alphas = schedulers.alphas_cumprod(scheduler)
    falls = alphas[1:] < alphas[:-1]
    inside = (alphas > 0) & (alphas <= 1)
    inside[-1] = 0 <= float(alphas[-1]) <= 1
    wrong = int((~falls).sum()) + int((~inside).sum())
    hint = ""
    if wrong:
        first = int(torch.cat([inside[:1].logical_not(), ~falls | ~inside[1:]]).nonzero()[0])
        hint = f"The first is timestep {first}, where ᾱ is {float(alphas[first]):.6g}."
    if float(alphas.max() - alphas.min()) == 0:
        hint = f"ᾱ is {float(alphas[0]):.6g} at every timestep: no noise is ever added."
    return Measurement(
        wrong, "number of wrong steps of ᾱ", series={"alphas_cumprod": _thin(alphas)}, hint=hint, protocol={"timesteps": len(alphas)}
    )


@check(
    "schedule",
    "betas lie between 0 and 1 and do not fall",
    figure="betas outside (0, 1), plus one for a reversed or constant schedule",
    sees="reversed or constant betas, by name",
    blind_to="a wrong shape between the ends",
)
def betas_in_range(scheduler: Scheduler) -> Measurement:
    """Betas outside (0, 1), plus 1 if the betas fall from first to last or are all the same.

    Every published schedule adds noise ever faster; a beta of exactly 1 is legal at zero terminal SNR.
    """
    betas = schedulers.betas(scheduler)
    outside = ~((betas > 0) & (betas < 1))
    outside[-1] = not 0 < float(betas[-1]) <= 1
    wrong, hint = int(outside.sum()), ""
    if wrong:
        first = int(outside.nonzero()[0])
        hint = f"The first is timestep {first}, where beta is {float(betas[first]):.6g}."
    shape = _shape_of(betas)
    if shape:
        wrong += 1
        hint = f"{hint} {shape}".strip()
    return Measurement(wrong, "number of wrong betas", hint=hint, protocol={"timesteps": len(betas)})


@check(
    "schedule",
    "sigmas fall towards the clean end",
    figure="inference steps with rising sigma",
    sees="a wrong sigma schedule",
    blind_to="the values of sigma",
)
def sigmas_monotonic(scheduler: Scheduler) -> Measurement:
    """Inference steps at which sigma does not fall (50 steps); schedulers of higher order may repeat one."""
    planned = schedulers.with_timesteps(scheduler, min(50, schedulers.num_train_timesteps(scheduler)))
    sigmas = getattr(planned, "sigmas", None)
    if sigmas is None or len(sigmas) < 2:
        raise NotApplicable(f"{type(scheduler).__name__} steps in timesteps and has no sigmas.")
    values = torch.as_tensor(sigmas).to("cpu", torch.float64)
    steps = values[1:] - values[:-1]
    wrong = steps > 0 if schedulers.evaluations_per_step(scheduler) > 1 else steps >= 0
    count = int(wrong.sum()) + int((~torch.isfinite(values)).sum())
    hint = f"The first is step {int(wrong.nonzero()[0])}." if bool(wrong.any()) else ""
    return Measurement(count, "number of steps with rising sigma", series={"sigmas": _thin(values)}, hint=hint)


@check(
    "schedule",
    "log-SNR at the cleanest timestep",
    figure="log-SNR at the first training timestep, in nats",
    sees="a start that is too noisy",
    blind_to="everything between the ends",
    plot=plots.log_snr,
)
def log_snr_first(scheduler: Scheduler) -> Measurement:
    """Log-SNR of the first training timestep, in nats: how clean the cleanest input is."""
    curve = schedulers.log_snr(scheduler)
    return Measurement(float(curve[0]), "log-SNR at the first timestep", "nats", series=_curves(curve), hint=_betas_hint(scheduler))


@check(
    "schedule",
    "log-SNR at the noisiest timestep",
    figure="log-SNR at the last training timestep, in nats",
    sees="an end that is not noise",
    blind_to="everything between the ends",
)
def log_snr_last(scheduler: Scheduler) -> Measurement:
    """Log-SNR of the last training timestep, in nats; −inf is zero terminal SNR."""
    value = float(schedulers.log_snr(scheduler)[-1])
    hint = _betas_hint(scheduler)
    if math.isfinite(value):
        alpha = 1 / (1 + math.exp(-value))
        hint = hint or f"At the last timestep √ᾱ = {math.sqrt(alpha):.4f} of the image's signal remains (arXiv:2305.08891)."
    return Measurement(value, "log-SNR at the last timestep", "nats", hint=hint)


@check(
    "schedule",
    "log-SNR falls gently mid-way",
    figure="steepest fall over a tenth of the schedule, in nats per unit of t/T",
    sees="a cliff between two noise levels",
    blind_to="the first and the last quarter",
    plot=plots.midway,
)
def log_snr_midway(scheduler: Scheduler) -> Measurement:
    """Steepest fall of log-SNR over a tenth of the schedule between T/4 and 3T/4, in nats per unit of t/T."""
    if schedulers.has_own_sigma_range(scheduler):
        raise NotApplicable(f"{type(scheduler).__name__} spaces its sigmas for inference; there is no training schedule to fall.")
    own = midway_fall(schedulers.log_snr(scheduler))
    series = {"falls": {name: midway_fall(values) for name, values in textbook_log_snr(1000).items()} | {"this model": own}}
    return Measurement(own, "steepest mid-way fall of log-SNR", "nats per t/T", series=series)


@check(
    "schedule",
    "timesteps are well formed for many step counts",
    figure="wrong counts, orders and ranges for 1, 2, 3, 7, 10, 20 and 50 steps",
    sees="off-by-one, ascending or out-of-range timesteps",
    blind_to="the noise levels that belong to the timesteps",
)
def timesteps_well_formed(scheduler: Scheduler) -> Measurement:
    """Violations of count, order and range of `timesteps` over 1, 2, 3, 7, 10, 20 and 50 inference steps."""
    violations = []
    most = schedulers.num_train_timesteps(scheduler)
    fewest = schedulers.fewest_steps(scheduler)
    counts = [count for count in STEP_COUNTS if fewest <= count <= most]
    if not counts:
        raise NotApplicable(f"{type(scheduler).__name__} needs at least {fewest} steps and has only {most} training timesteps.")
    for count in counts:
        try:
            planned = schedulers.with_timesteps(scheduler, count)
            timesteps = torch.as_tensor(planned.timesteps).to("cpu", torch.float64)
        except (ValueError, IndexError, RuntimeError, TypeError, AssertionError, AttributeError, ZeroDivisionError) as error:
            violations.append(f"set_timesteps({count}) raises {type(error).__name__}: {error}")
            continue
        violations += [f"set_timesteps({count}): {problem}" for problem in _timestep_problems(planned, timesteps, count)]
    hint = f"First: {violations[0].rstrip('.')}." if violations else ""
    return Measurement(
        len(violations), "number of violations", hint=hint, series={"violations": violations}, protocol={"step counts": counts}
    )


def _timestep_problems(scheduler: Scheduler, timesteps: torch.Tensor, count: int) -> list[str]:
    problems = []
    if not bool(torch.isfinite(timesteps).all()):
        return [f"{int((~torch.isfinite(timesteps)).sum())} timesteps are not finite"]
    order, revisits = schedulers.evaluations_per_step(scheduler), schedulers.revisits_timesteps(scheduler)
    # A step of a higher-order scheduler evaluates the model up to `order` times, the last one perhaps once.
    most = order * count + (WARM_UP if revisits else 0)
    least = count if order == 1 else order * (count - 1) + 1
    if not least <= len(timesteps) <= most:
        expected = str(count) if least == most else f"{least} to {most}"
        problems.append(f"{len(timesteps)} timesteps; expected {expected}")
    steps = timesteps[1:] - timesteps[:-1]
    if not revisits:
        # Sigma schedulers round the timestep that they show to the model; the sigmas are what they step by.
        sigmas = getattr(scheduler, "sigmas", None)
        rounded = sigmas is not None and len(sigmas) > count and bool((sigmas[1 : count + 1] < sigmas[:count]).all())
        rises = steps > 0 if order > 1 or rounded else steps >= 0
        if bool(rises.any()):
            place = int(rises.nonzero()[0])
            problems.append(f"timestep {float(timesteps[place]):g} is followed by {float(timesteps[place + 1]):g}; they must fall")
    elif len(timesteps) > 1 and float(timesteps[0]) <= float(timesteps[-1]) and count > 1:
        problems.append("the last timestep is not below the first")
    total = schedulers.num_train_timesteps(scheduler)
    # EDM and continuous schedulers pass log-sigmas as timesteps, which have no such range.
    if not schedulers.has_own_sigma_range(scheduler) or schedulers.is_flow(scheduler):
        top = total if schedulers.is_flow(scheduler) else total - 1
        outside = (timesteps < 0) | (timesteps > top)
        if bool(outside.any()):
            problems.append(f"timestep {float(timesteps[outside][0]):g} lies outside 0 to {top}")
    return problems


def _curves(own: torch.Tensor) -> dict[str, Any]:
    curves = {name: _thin(values) for name, values in textbook_log_snr(1000).items()}
    return {"log_snr": {**curves, "this model": _thin(own)}}


def _betas_hint(scheduler: Scheduler) -> str:
    try:
        return _shape_of(schedulers.betas(scheduler))
    except NotApplicable:
        return ""


def _shape_of(betas: torch.Tensor) -> str:
    if len(betas) > 1 and float(betas.max()) == float(betas.min()):
        return f"The betas are constant ({float(betas[0]):.4g}): noise does not build up as in any published schedule."
    if len(betas) > 1 and float(betas[0]) > float(betas[-1]):
        return f"The betas fall from {float(betas[0]):.4g} to {float(betas[-1]):.4g}: they look reversed."
    return ""


def _thin(values: torch.Tensor, points: int = 200) -> list[float]:
    """At most `points` values for a plot, ends included."""
    if len(values) <= points:
        return [float(value) for value in values]
    return [float(values[int(index)]) for index in torch.linspace(0, len(values) - 1, points)]
