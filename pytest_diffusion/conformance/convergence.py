"""Laws of accuracy: on Gaussian data, whose ODE and marginals are known, the error decreases with the declared order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from pytest_diffusion.conformance import plots
from pytest_diffusion.conformance.arrivals import arrivals
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.gaussian import Moments, noise_per_step, states_of
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import config_value, evaluations_per_step
from pytest_diffusion.verdicts.drawing import Series
from pytest_diffusion.verdicts.errors import NotApplicable

_SLACK = 0.5
_FLOOR = 2e-5


@law(
    "the error falls with the declared order",
    source="exact probability-flow ODE of Gaussian data, docs/oracle.md, section 2",
    counts=(20, 40, 80),
    rests_on=("runs", "sigmas_fall", "point_mass_preserved", "noise_is_normal"),
    plot=plots.convergence,
)
def convergence_order(subject: Subject, counts: Sequence[int]) -> Series:
    """With twice the steps, the error of a deterministic solver is divided by 2 to the power of its order.

    If a coefficient is wrong, the samples may still converge, but with a lower order.
    """
    if noise_per_step(subject, {}):
        raise NotApplicable(f"{subject.name} is stochastic: see `weak_convergence`.")
    return _require_order(subject, counts, "error of the sample", {})


@law(
    "mean and variance converge to those of the data",
    source="Kloeden & Platen 1992, chapter 14 (weak convergence); DPM-Solver++, arXiv:2211.01095",
    counts=(20, 40, 80),
    rests_on=("runs", "sigmas_fall", "point_mass_preserved", "noise_amount", "noise_is_normal"),
    plot=plots.convergence,
)
def weak_convergence(subject: Subject, counts: Sequence[int]) -> Series:
    """Mean and variance of a stochastic solver's samples converge to those of the data with the declared order.

    Both are computed exactly, from the response to each draw of noise.
    """
    draws = noise_per_step(subject, subject.noisy)
    if not draws:
        raise NotApplicable(f"{subject.name} draws no noise: see `convergence_order`.")
    if draws > 4:
        raise NotApplicable(
            f"{subject.name} draws {draws} values per step for a Brownian path, so its marginals cannot be computed exactly."
        )
    if _is_consistency_sampler(subject):
        raise NotApplicable(
            f"{subject.name} replaces its noise at every step, as for consistency models, so it does not converge to an ODE or SDE."
        )
    # A sampler behind an adapter declares no order; that of its evaluations is one of its ODE.
    return _require_order(subject, counts, "error of mean and deviation", subject.noisy, most=1 if subject.is_adapted else None)


def declared_order(subject: Subject) -> tuple[int, str]:
    """Declared order of a solver, and the parameter that declares it.

    `solver_order` of multistep and single-step solvers is limited to 2: third-order updates start with lower orders, and are of
    second order in every known implementation. `order` (evaluations of the model in a step) is not limited.
    """
    for name in ("solver_order", "predictor_order", "pndm_order"):
        value = config_value(subject.scheduler, name) or getattr(subject.scheduler, name, None)
        if value:
            # A single-step solver needs no earlier steps, so it has its full order from the first one on.
            limit = int(value) if hasattr(subject.scheduler, "order_list") else 2
            return min(int(value), limit), f"{name}={value}"
    parameter = subject.step_parameters.get("order")
    if parameter is not None and isinstance(parameter.default, int):
        return min(parameter.default, 2), f"step(order={parameter.default})"
    order = evaluations_per_step(subject.scheduler)
    return order, f"order={order}"


def _errors(runs: Sequence[list[Moments]]) -> list[float]:
    """Largest error of mean and standard deviation over the states of each loop, down to a level that all of them reach.

    The error grows along a loop. Where the states move with the number of steps, as under a large shift, their last ones lie at other
    levels, at which errors cannot be compared.
    """
    lowest = max(run[-1].ratio for run in runs)
    return [_largest_down_to(run, lowest) for run in runs]


def _largest_down_to(run: list[Moments], lowest: float) -> float:
    """The largest error at levels of at least `lowest`, where the error is interpolated in logarithms."""
    above = [one for one in run if one.ratio >= lowest * (1 - 1e-9)]
    below = [one for one in run if one.ratio < lowest * (1 - 1e-9)]
    largest = max(one.error for one in above)
    if below and 0 < above[-1].ratio > lowest * (1 + 1e-6) and 0 < min(above[-1].error, below[0].error) < math.inf:
        share = math.log(above[-1].ratio / lowest) / math.log(above[-1].ratio / below[0].ratio)
        largest = max(largest, math.exp((1 - share) * math.log(above[-1].error) + share * math.log(below[0].error)))
    return largest


def _require_order(subject: Subject, counts: Sequence[int], what: str, extras: Mapping[str, Any], *, most: int | None = None) -> Series:
    order, source = declared_order(subject)
    order = min(order, most or order)
    if len(subject.counts(*counts)) < 2:
        raise NotApplicable(f"{subject.name} supports too few inference steps to measure an order.")
    grid, shown = _smooth_grid(subject)
    if shown and config_value(subject.scheduler, "disable_corrector") == []:
        # A corrector raises the order by one (UniPC, arXiv:2302.04867, theorem 3.1); this shows only on a smooth grid.
        order, source = order + 1, f"{source}, and a corrector"
    try:
        fit = _fit(grid, counts, extras, order)
    except Crash:
        if grid is subject:
            raise
        grid, shown, fit = subject, "", _fit(subject, counts, extras, order)
    series = {"steps": fit.counts, "errors": fit.errors, "declared": order, "seen": fit.order, "what": what}
    _require_fit(fit, order, f"an {what} of order {order} ({source})", shown, series)
    if not extras:
        _require_no_growth(grid, fit, shown, series)
    if order > 1 and not extras and evaluations_per_step(subject.scheduler) == 1 and _takes_uneven_grids(grid, fit.counts):
        _require_fit(
            _fit(grid, counts, extras, order, uneven=True), order, f"an {what} of order {order} ({source})", " of alternating size", series
        )
    return series


class Fit(NamedTuple):
    """Errors at increasing numbers of steps."""

    counts: list[int]
    errors: list[float]
    runs: list[list[Moments]]

    @property
    def order(self) -> float:
        """The larger of the last two slopes: the first steps may be too large to show an order."""
        pairs = zip(pairwise(self.errors), pairwise(self.counts), strict=True)
        slopes = [math.log2(max(one, 1e-30) / max(two, 1e-30)) / math.log2(after / before) for (one, two), (before, after) in pairs]
        return max(slopes[-2:])

    def shows(self, order: int) -> bool:
        """Whether the error decreases with an order, or is as small as the rounding of float32."""
        return self.errors[-1] <= _FLOOR or self.order >= order - _SLACK


def _fit(subject: Subject, counts: Sequence[int], extras: Mapping[str, Any], order: int, *, uneven: bool = False) -> Fit:
    """Errors at the given numbers of steps, and at twice the last one if these do not show the order."""
    tried = subject.counts(*counts)
    runs = [_states(subject, count, extras, uneven) for count in tried]
    fit = Fit(tried, _errors(runs), runs)
    if not fit.shows(order) and (more := subject.counts(2 * tried[-1])):
        runs.append(_states(subject, more[0], extras, uneven))
        fit = Fit([*tried, *more], _errors(runs), runs)
    return fit


def _states(subject: Subject, count: int, extras: Mapping[str, Any], uneven: bool) -> list[Moments]:
    return states_of(subject, count, extras, (lambda: _uneven(subject, count)) if uneven else None)


def _require_fit(fit: Fit, order: int, expected: str, shown: str, series: Series) -> None:
    if not fit.shows(order):
        listed = ", ".join(f"{value:.3g}" for value in fit.errors)
        seen = f"errors {listed} at {', '.join(map(str, fit.counts))} steps{shown}: order {fit.order:.2f}"
        raise Broken(expected, seen, series=series)


def _require_no_growth(subject: Subject, fit: Fit, shown: str, series: Series) -> None:
    """Raise Broken if more steps make the error larger: coefficients that are differences of almost equal numbers lose their digits."""
    if fit.counts[-1] != max(subject.counts(fit.counts[-1], 160)) and (more := subject.counts(160)):
        largest = _errors([*fit.runs, states_of(subject, more[0], {})])[-1]
        if largest > max(2 * min(fit.errors), 10 * _FLOOR):
            listed = ", ".join(f"{value:.3g}" for value in (*fit.errors, largest))
            seen = f"errors {listed} at {', '.join(map(str, (*fit.counts, more[0])))} steps{shown}"
            raise Broken("an error that does not grow with more steps", seen, series=series)


def _takes_uneven_grids(subject: Subject, counts: Sequence[int]) -> bool:
    """Whether the scheduler uses a list of sigmas, so that single sigmas can be left out, and plans the finer ones."""
    finer = [_finer(count) for count in counts]
    if subject.counts(*finer) != finer:
        return False
    scheduler = subject.planned(subject.some_count)
    sigmas = getattr(scheduler, "sigmas", None)
    return isinstance(sigmas, torch.Tensor) and len(sigmas) == len(scheduler.timesteps) + 1


def _finer(count: int) -> int:
    return 3 * count // 2 + 1


def _uneven(subject: Subject, count: int) -> Any:
    """A plan whose steps are one and two steps of a finer plan in turn. Formulas for equal steps lose their order on it."""
    fine = subject.planned(_finer(count))
    kept = [0]
    while len(kept) < count:
        kept.append(kept[-1] + 1 + len(kept) % 2)
    scheduler = subject.planned(count)
    scheduler.timesteps = fine.timesteps[kept]
    scheduler.sigmas = torch.cat([fine.sigmas[kept], fine.sigmas[-1:]])
    return scheduler


def _is_consistency_sampler(subject: Subject) -> bool:
    """Whether the share of new noise in a step stays large with more steps; in ancestral sampling it decreases."""
    shares = []
    for count in subject.counts(8, 32):
        parts = [one for one in arrivals(subject, count)[:-1] if one.step.goes_on and float(one.target.sigma) > 0]
        if any(one.rest > one.tolerance for one in parts):
            return False  # its noise is not only what this step drew: it has stages, or a memory
        shares.append(sorted((one.fresh / float(one.target.sigma)) ** 2 for one in parts)[len(parts) // 2])
    return len(shares) == 2 and shares[1] > 0.2 and shares[1] > 0.6 * shares[0]


def _smooth_grid(subject: Subject) -> tuple[Subject, str]:
    """The scheduler with sigmas evenly spaced in log σ, if it offers them, because an order shows best there; and a note."""
    if not config_value(subject.scheduler, "use_flow_sigmas"):
        others = {name: False for name in ("use_karras_sigmas", "use_beta_sigmas", "use_lu_lambdas") if name in subject.config}
        try:
            grid = subject.with_config(use_exponential_sigmas=True, **others)
            grid.require_kind()
            if grid.kind == subject.kind and grid.kind != "flow":
                return grid, " with exponential sigmas"
        except NotApplicable:
            pass
    return subject, ""
