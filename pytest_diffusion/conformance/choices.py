"""Laws of named choices: a schedule that the configuration names must follow the formula of that name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pytest_diffusion.conformance import loops
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.laws import Broken, Claims, law
from pytest_diffusion.conformance.refusals import refuses_entries
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import as_values, config_value, evaluations_per_step, is_set
from pytest_diffusion.verdicts.errors import NotApplicable

_RESHAPED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")
"""Entries that choose another formula for the sigmas of a plan."""


@law(
    "betas have the closed form of their name",
    source="arXiv:2006.11239, section 4 (linear); arXiv:2112.10752 (scaled_linear); arXiv:2102.09672, equation 17 (squaredcos_cap_v2); "
    "arXiv:2407.03297, table 1 (laplace); arXiv:2203.02923, appendix (sigmoid)",
    rests_on=("runs",),
)
def named_betas(subject: Subject, counts: Sequence[int]) -> None:
    """`beta_schedule` names a formula from `beta_start` to `beta_end`, also where `from_config` is given another name than the default.

    A checkpoint that was trained with it needs these betas. Given `trained_betas` must be used as they are.
    """
    del counts
    others = [key for key in ("rescale_betas_zero_snr", "snr_shift_scale") if is_set(subject.scheduler, key)]
    name = config_value(subject.scheduler, "beta_schedule")
    if getattr(subject.planned(subject.some_count), "alphas_cumprod", None) is None or name is None or others:
        raise NotApplicable(
            f"{subject.name} has no beta schedule with a known formula{' (because of ' + others[0] + ')' if others else ''}."
        )
    claims = Claims()
    looked = 0
    if is_set(subject.scheduler, "trained_betas"):
        looked += 1
        given = torch.as_tensor(np.asarray(config_value(subject.scheduler, "trained_betas"))).double()
        with claims.next():
            _require_products(subject, given, "trained_betas")
    else:
        for one in (name, *(other for other in _FORMULAS if other != name)):
            looked += _looked_at(subject, str(one), claims)
        if "trained_betas" in subject.config:
            given = torch.linspace(0.002, 0.03, subject.num_train_timesteps, dtype=torch.float64) ** 1.1
            with claims.next():
                _require_products(_with_betas(subject, given), given, "trained_betas")
    if not looked:
        raise NotApplicable(f"{subject.name} has no beta schedule with a known formula.")
    claims.settle()


def _with_betas(subject: Subject, betas: torch.Tensor) -> Subject:
    """The class with given betas: a list, or NumPy's array where it takes that only."""
    try:
        return subject.with_config(trained_betas=betas.tolist())
    except (Crash, NotApplicable):
        return subject.with_config(trained_betas=betas.numpy())


def _looked_at(subject: Subject, name: str, claims: Claims) -> int:
    """1 where the class has the named schedule, with a known formula."""
    own, start, end = (config_value(subject.scheduler, key) for key in ("beta_schedule", "beta_start", "beta_end"))
    needs_ends = name in ("linear", "scaled_linear", "sigmoid")
    if name not in _FORMULAS or (needs_ends and (start is None or end is None)):
        return 0
    try:
        other = subject if name == own else subject.with_config(beta_schedule=name)
        other.planned(other.some_count)
    except NotApplicable:
        return 0  # this class has no such schedule
    except Crash as crash:
        if refuses_entries(crash.error, {"beta_schedule": name}, subject.scheduler_class):
            return 0
        claims.add(crash)
        return 1
    ends = (float(start), float(end)) if needs_ends else (0.0, 0.0)
    with claims.next():
        _require_products(other, _FORMULAS[name](subject.num_train_timesteps, *ends), f"beta_schedule={name!r}")
    return 1


def _require_products(subject: Subject, betas: torch.Tensor, what: str) -> None:
    """Raise Broken unless ᾱ is the running product of 1 − β."""
    wanted = torch.cumprod(1 - betas, 0)
    own = as_values(subject.planned(subject.some_count).alphas_cumprod).double()
    gap = (own - wanted).abs() if own.shape == wanted.shape else torch.full((1,), torch.inf)
    if not float(gap.max()) < 1e-4:
        place = int(gap.argmax())
        raise Broken(f"ᾱ of {float(wanted[place]):.5g} at timestep {place} with {what}", f"{float(own[place]):.5g}")


def _between(total: int, first: float, last: float) -> torch.Tensor:
    return torch.linspace(first, last, total, dtype=torch.float64)


def _of_products(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[int, float, float], torch.Tensor]:
    """Betas whose products are a function of the share of time, from 0 to 1; no beta is above 0.999."""

    def betas(total: int, first: float, last: float) -> torch.Tensor:
        products = function(torch.linspace(0, 1, total + 1, dtype=torch.float64))
        return (1 - products[1:] / products[:-1]).clamp(max=0.999)

    return betas


def _laplace(share: torch.Tensor) -> torch.Tensor:
    """ᾱ = SNR / (1 + SNR), with a log-SNR that has a Laplace distribution of scale 0.5 around 0."""
    log_snr = -0.5 * torch.copysign(torch.ones_like(share), 0.5 - share) * torch.log(1 - 2 * (0.5 - share).abs() + 1e-6)
    return torch.sigmoid(log_snr)


_FORMULAS: dict[str, Callable[[int, float, float], torch.Tensor]] = {
    "linear": _between,
    "scaled_linear": lambda total, first, last: _between(total, first**0.5, last**0.5) ** 2,
    "squaredcos_cap_v2": _of_products(lambda share: ((share + 0.008) / 1.008 * math.pi / 2).cos().square()),
    "sigmoid": lambda total, first, last: torch.sigmoid(_between(total, -6, 6)) * (last - first) + first,
    "exp": _of_products(lambda share: torch.exp(-12 * share)),
    "laplace": _of_products(_laplace),
}


@law(
    "timesteps and sigmas are spaced as their name says",
    source="arXiv:2305.08891, table 2; Karras et al. 2022, arXiv:2206.00364, equation 5",
    counts=(5, 10, 40),
    least=2,
    rests_on=("runs", "timesteps_well_formed", "sigmas_fall"),
)
def named_spacing(subject: Subject, counts: Sequence[int]) -> None:
    """`linspace` and `trailing` start at the last training timestep. Karras sigmas are evenly spaced in σ^(1/7), exponential in log σ."""
    loops.require_levels(subject)
    shaped = [name for name in _RESHAPED if config_value(subject.scheduler, name)]
    spacing = config_value(subject.scheduler, "timestep_spacing")
    known = (not shaped and spacing in ("linspace", "trailing")) or shaped in (["use_karras_sigmas"], ["use_exponential_sigmas"])
    if not known or subject.kind in ("edm", "flow") or subject.is_inverse or "original_inference_steps" in subject.config:
        raise NotApplicable(f"{subject.name} uses no spacing with a known formula.")
    if math.isfinite(float(config_value(subject.scheduler, "lambda_min_clipped") or -math.inf)):
        raise NotApplicable(f"{subject.name} skips the noisiest timesteps (lambda_min_clipped).")
    if config_value(subject.scheduler, "timestep_type") == "continuous" and not shaped:
        raise NotApplicable(f"{subject.name} conditions the model on sigmas, not on timesteps.")
    for count in subject.counts(*counts):
        scheduler = subject.planned(count)
        if not shaped:
            first, last = float(as_values(scheduler.timesteps)[0]), subject.num_train_timesteps - 1
            if abs(first - last) > 1.0:
                raise Broken(f"{last} as the first timestep with timestep_spacing={spacing!r}", f"{first:g}", count=count)
            continue
        sigmas = as_values(scheduler.sigmas).double()
        sigmas = sigmas[:count] if evaluations_per_step(scheduler) == 1 else sigmas[sigmas > 0].unique().flip(0)
        even = sigmas ** (1 / 7) if shaped == ["use_karras_sigmas"] else sigmas.log()
        steps = even[1:] - even[:-1]
        spread = float((steps - steps.mean()).abs().max() / steps.mean().abs())
        if len(even) == count > 1 and not spread < 0.02:
            named = "σ^(1/7)" if shaped == ["use_karras_sigmas"] else "log σ"
            raise Broken(f"steps of the same size in {named} with {shaped[0]}", f"steps that differ by {spread:.0%}", count=count)


@law(
    "a shift that depends on the image's size has the closed form of its name",
    source="Scaling Rectified Flow Transformers, arXiv:2403.03206, equation 23, with a shift of exp(mu) or mu",
    counts=(5, 20),
    rests_on=("runs", "timesteps_well_formed", "timesteps_cover", "sigmas_fall", "timesteps_match_sigmas"),
)
def named_shift(subject: Subject, counts: Sequence[int]) -> None:
    """A shift s changes each sigma of the plan to s·σ / (1 + (s − 1)·σ).

    A dynamic shift is s = exp(mu), or s = mu if it is linear. A static `flow_shift` or `shift` is s itself.
    """
    if subject.kind == "flow" and not config_value(subject.scheduler, "use_dynamic_shifting"):
        _require_static_shift(subject, counts)
        return
    takes_mu = "mu" in inspect.signature(subject.scheduler.set_timesteps).parameters
    others = [name for name in ("shift_terminal", "invert_sigmas", *_RESHAPED[:4]) if config_value(subject.scheduler, name)]
    if not config_value(subject.scheduler, "use_dynamic_shifting") or not takes_mu or subject.kind != "flow" or others:
        raise NotApplicable(f"{subject.name} does not shift its plan by `mu`{' (or uses ' + others[0] + ' as well)' if others else ''}.")
    is_linear = config_value(subject.scheduler, "time_shift_type") == "linear"
    for count in subject.counts(*counts):
        plain = as_values(subject.planned(count, mu=1.0 if is_linear else 0.0).sigmas).double()
        for shift in (1.5, 3.0):
            mu = shift if is_linear else math.log(shift)
            _require_shifted(plain, subject.planned(count, mu=mu), shift, f"mu={mu:.4g}", count)


def _require_static_shift(subject: Subject, counts: Sequence[int]) -> None:
    name = next((name for name in ("flow_shift", "shift") if name in subject.config), None)
    others = [one for one in ("shift_terminal", "invert_sigmas", *_RESHAPED[:4]) if config_value(subject.scheduler, one)]
    if name is None or others:
        raise NotApplicable(f"{subject.name} has no shift{' (or combines it with ' + others[0] + ')' if others else ''}.")
    if name == "shift":
        # The shift also changes the training schedule, which `timesteps_cover` checks.
        raise NotApplicable(f"{subject.name} applies its shift to the training schedule: see `timesteps_cover`.")
    plain, shifted = subject.with_config(**{name: 1.0}), subject.with_config(**{name: 3.0})
    for count in subject.counts(*counts):
        _require_shifted(as_values(plain.planned(count).sigmas).double(), shifted.planned(count), 3.0, f"{name}=3", count)


def _require_shifted(plain: torch.Tensor, planned: Any, shift: float, by: str, count: int) -> None:
    wanted, own = shift * plain / (1 + (shift - 1) * plain), as_values(planned.sigmas).double()
    gap = (own - wanted).abs() if own.shape == wanted.shape else torch.full((1,), torch.inf)
    place = int(gap.argmax())
    if not float(gap[place]) < 1e-3:
        raise Broken(f"sigma {float(wanted[place]):.5g} with {by} (number {place})", f"{float(own[place]):.5g}", count=count)
