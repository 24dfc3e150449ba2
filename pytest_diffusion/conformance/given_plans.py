"""Laws of plans from the caller: the loop must follow the given timesteps or sigmas as it follows its own."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pytest_diffusion.conformance import loops
from pytest_diffusion.conformance.arrivals import arrivals
from pytest_diffusion.conformance.calls import Crash, calling
from pytest_diffusion.conformance.conditioning import require_named_level
from pytest_diffusion.conformance.flow_grid import declared_shift
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.point_mass import require_arrival
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import as_values, config_value, evaluations_per_step
from pytest_diffusion.verdicts.errors import NotApplicable

_RESTS_ON = ("runs", "point_mass_preserved", "terminal_step", "noise_amount", "timesteps_match_sigmas", "argument_types")


@law(
    "given timesteps are followed",
    source="Align Your Steps, arXiv:2404.14507, section 5; diffusers' scheduler interface: set_timesteps(timesteps=...)",
    counts=(4, 9),
    rests_on=_RESTS_ON,
)
def given_timesteps(subject: Subject, counts: Sequence[int]) -> None:
    """Uneven timesteps from the caller must be the plan: the model gets these timesteps, and each step ends at the next one."""
    _require_argument(subject, "timesteps")
    if subject.kind in ("edm", "flow"):
        raise NotApplicable(f"{subject.name} does not accept whole timesteps as a plan.")
    for count in subject.counts(*counts):
        last = subject.num_train_timesteps - 1
        given = [round(last * (1 - index / count) ** 1.5) for index in range(count)]
        if len(set(given)) < count:
            continue
        scheduler = _planned(subject, "timesteps", given, count)
        told = as_values(scheduler.timesteps).double()
        told = told if evaluations_per_step(scheduler) == 1 else told.unique_consecutive()
        if told.tolist() != [float(one) for one in given]:
            raise Broken(f"the given timesteps {given}", f"{[round(one, 3) for one in told.tolist()]}", count=count)
        _require_followed(subject, scheduler, count, f" of the given timesteps {given}")


@law(
    "given sigmas are followed",
    source="Karras et al. 2022, arXiv:2206.00364, section 3; diffusers' scheduler interface: set_timesteps(sigmas=...)",
    counts=(4, 9),
    rests_on=_RESTS_ON,
)
def given_sigmas(subject: Subject, counts: Sequence[int]) -> None:
    """Sigmas from the caller (of a flow: after its shift) must be the plan: the model gets their timesteps, each step ends at the next."""
    _require_argument(subject, "sigmas")
    for count in subject.counts(*counts):
        own = as_values(subject.planned(count).sigmas).double()
        first, last = float(own[0]), float(own[own > 0][-1])
        if not first > last > 0:
            raise NotApplicable(f"{subject.name} has sigmas that do not fall: what a given plan would be is not known.")
        given = [round(first * (last / first) ** ((index / (count - 1)) ** 1.5), 6) for index in range(count)]
        scheduler = _planned(subject, "sigmas", given, count)
        if len(as_values(scheduler.timesteps)) == count - 1 or len(as_values(scheduler.sigmas)) == count:
            # Some schedulers expect the final sigma as the last entry of the list.
            scheduler = _planned(subject, "sigmas", [*given, 0.0], count)
        planned = as_values(scheduler.sigmas).double()[:count]
        wanted = _shifted(subject, torch.tensor(given, dtype=torch.float64))
        if wanted is not None and not torch.allclose(planned, wanted, rtol=1e-3):
            seen = f"{[round(one, 4) for one in planned.tolist()]}"
            raise Broken(f"the sigmas {[round(one, 4) for one in wanted.tolist()]}", seen, count=count)
        told = as_values(scheduler.timesteps).double()[:count] / subject.num_train_timesteps
        if subject.kind == "flow" and not float((told - planned).abs().max()) < 0.02:
            raise Broken(
                f"timesteps that are {subject.num_train_timesteps} times their sigmas", f"{scheduler.timesteps.tolist()}", count=count
            )
        _require_followed(subject, scheduler, count, f" of given sigmas from {given[0]:g} to {given[-1]:g}")


def _require_argument(subject: Subject, name: str) -> None:
    loops.require_levels(subject)
    if name not in inspect.signature(subject.scheduler.set_timesteps).parameters:
        raise NotApplicable(f"{subject.name}.set_timesteps takes no {name}.")
    if subject.is_inverse:
        raise NotApplicable(f"{subject.name} is an inverse scheduler: its timesteps do not give the noise level of its samples.")


def _planned(subject: Subject, name: str, given: list[Any], count: int) -> Any:
    scheduler = subject.fresh()
    try:
        with calling(f"set_timesteps({name}={given})"):
            scheduler.set_timesteps(**subject.given(**{name: given}))
    except Crash as crash:
        # Some classes take an array, and no list; `argument_types` reports that.
        for kind in (np.array, torch.tensor):
            scheduler = subject.fresh()
            try:
                with calling(f"set_timesteps({name}={kind.__name__}({given}))"):
                    scheduler.set_timesteps(**subject.given(**{name: kind(given)}))
            except Crash:
                continue
            return scheduler
        if isinstance(crash.error, ValueError) and name in str(crash.error):
            raise NotApplicable(f"{subject.name} refuses {name} in this configuration: {crash.error}") from crash
        raise Broken(f"{name} {given} to be accepted", str(crash), count=count) from crash
    return scheduler


def _shifted(subject: Subject, sigmas: torch.Tensor) -> torch.Tensor | None:
    """Given sigmas after the static shift of a flow (arXiv:2403.03206, equation 23). None for other shifts."""
    others = ("use_dynamic_shifting", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    if any(config_value(subject.scheduler, name) for name in others):
        return None
    shift = declared_shift(subject)
    return shift * sigmas / (1 + (shift - 1) * sigmas) if subject.kind == "flow" else sigmas


def _require_followed(subject: Subject, scheduler: Any, count: int, where: str) -> None:
    try:
        found = arrivals(subject, count, scheduler=scheduler)
    except Crash as crash:
        raise Broken(f"a run{where}", str(crash), count=count) from crash
    for one in found:
        if subject.kind == "sigma":
            require_named_level(subject, scheduler, one.step, one.number, count)
        if one is not found[-1]:
            require_arrival(subject, one, count, where=where)
    end = found[-1]
    if not (
        abs(end.clean - float(end.target.alpha)) <= 3 * end.tolerance and abs(end.total - float(end.target.sigma)) <= 3 * end.tolerance
    ):
        seen = f"a run{where} ends at {end.clean:.4g}·image and {end.total:.4g}·noise"
        raise Broken(f"{float(end.target.alpha):.4g}·image and {float(end.target.sigma):.4g}·noise after the last step", seen, count=count)
