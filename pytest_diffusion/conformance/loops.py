"""A sampling loop as in pipelines: with an exact denoiser and known noise levels, or with any function as the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from pytest_diffusion.conformance.randomness import Draw, Draws
from pytest_diffusion.conformance.rounding import Rounded
from pytest_diffusion.conformance.subject import EXTRAS, Crash, Subject, calling
from pytest_diffusion.models.levels import NoiseLevel, as_prediction, kind_of, level_in_loop, prediction_type_of
from pytest_diffusion.models.schedulers import as_values, config_value
from pytest_diffusion.verdicts.errors import NotApplicable

LARGE_STEPS = 10
"""Largest number of inference steps for the rounding test: noise levels are far apart, and differences of squares cancel."""
Denoiser = Callable[[torch.Tensor, NoiseLevel], torch.Tensor]
Predictor = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]


class Visit(NamedTuple):
    """One call of `step`: the state before and after, the random draws, and whether the next call starts from the state after."""

    timestep: Any
    before: torch.Tensor
    after: torch.Tensor
    draws: list[Draw]
    goes_on: bool = True
    clean: torch.Tensor | None = None
    """The `pred_original_sample` of the step, if it has one."""


class Step(NamedTuple):
    """A visit with the noise level of the state before: the level of the sample, not of the scaled model input."""

    timestep: float
    level: NoiseLevel
    before: torch.Tensor
    after: torch.Tensor
    draws: list[Draw]
    goes_on: bool = True
    clean: torch.Tensor | None = None


class Run(NamedTuple):
    """A whole loop: its steps, and the declared last noise level."""

    steps: list[Step]
    end: NoiseLevel

    @property
    def levels(self) -> list[NoiseLevel]:
        """Levels of all states, from the first to the declared end."""
        return [*(step.level for step in self.steps), self.end]


def walk(
    subject: Subject,
    scheduler: Any,
    sample: torch.Tensor,
    predict: Predictor,
    *,
    first: int = 0,
    last: int | None = None,
    replace: Callable[[torch.Tensor], torch.Tensor] | None = None,
    variance: float = -1.0,
    **extras: Any,
) -> list[Visit]:
    """Visits of a planned scheduler from timestep number `first` up to `last`, with outputs `predict(sample, scaled sample, timestep)`.

    `replace` returns other values for the random draws of a step. Raises Crash for the scheduler's errors.
    """
    visits: list[Visit] = []
    # As in the loop of a pipeline: if timesteps are a list, these are Python numbers.
    timesteps = list(scheduler.timesteps)
    # Only inpainting schedulers use these: a known image, and the mask of its known part.
    extras = {"original_image": torch.full_like(sample, 0.25), "mask": torch.ones_like(sample), **extras}
    known = {name: value for name, value in extras.items() if name in subject.step_parameters or name not in EXTRAS}
    earlier: Any = None
    for index in range(first, len(timesteps) if last is None else last):
        timestep = timesteps[index]
        if visits and hasattr(scheduler, "undo_step") and timestep > earlier:
            with calling(f"undo_step(..., {float(timestep):g})"):
                sample = scheduler.undo_step(sample, earlier, extras.get("generator"))
            visits[-1] = visits[-1]._replace(goes_on=False)
            earlier = timestep
            continue
        earlier = timestep
        if "prev_timestep" in subject.step_parameters:
            known["prev_timestep"] = timesteps[index + 1] if index + 1 < len(timesteps) else None
        output = predict(sample, scale(scheduler, sample, timestep), timestep)
        if str(config_value(scheduler, "variance_type")) in ("learned", "learned_range"):
            # The second half of the channels is the variance: for `learned_range` −1 is the smallest and 1 the largest.
            output = torch.cat([output, torch.full_like(output, variance)], dim=1)
        before = sample.clone()
        with Draws(replace) as seen:
            arrived, clean = step(scheduler, output, timestep, sample, **known)
        # Clones, because a step may work in place; only `inputs_untouched` reports that.
        visits.append(Visit(timestep, before, arrived.clone(), seen.draws, clean=clean))
        sample = arrived
    return visits


def run(
    subject: Subject,
    num_inference_steps: int,
    denoiser: Denoiser,
    start: Callable[[NoiseLevel], torch.Tensor],
    *,
    scheduler: Any = None,
    first: int = 0,
    **rest: Any,
) -> Run:
    """A loop from `start(first level)` with the exact `denoiser(state, level)`, which returns x̂₀ for an unscaled state.

    Raises Crash for the scheduler's errors, and NotApplicable if a noise level or an argument of `step` is unknown.
    """
    subject.require_kind()
    subject.require_plain_step()
    scheduler = subject.planned(num_inference_steps) if scheduler is None else scheduler
    levels: list[NoiseLevel] = []

    def predict(sample: torch.Tensor, scaled: torch.Tensor, timestep: Any) -> torch.Tensor:
        if not bool(torch.isfinite(scaled).all()):
            raise Crash(f"a loop at timestep {float(timestep):g}", FloatingPointError(f"its sample has {unfit(scaled)}"))
        level = level_in_loop(scheduler, sample, scaled, timestep)
        levels.append(level_of_state(scheduler, level))
        clean = denoiser(sample, levels[-1]).to(sample)
        return as_prediction(clean, scaled, level, prediction_type_of(scheduler), scheduler=scheduler)

    sample = start(level_before(scheduler, as_values(scheduler.timesteps)[first]))
    visits = walk(subject, scheduler, sample, predict, first=first, **rest)
    steps = [
        Step(float(one.timestep), level, one.before, one.after, one.draws, one.goes_on, one.clean)
        for one, level in zip(visits, levels, strict=True)
    ]
    return Run(steps, declared_end(scheduler))


def states(subject: Subject, count: int, sample: torch.Tensor, *, scheduler: Any = None, **rest: Any) -> list[torch.Tensor]:
    """All samples of a loop from `sample`·`init_noise_sigma`, with a smooth function as the model, so that no noise level is needed.

    Raises Crash for the scheduler's errors, and NotApplicable if `step` needs other arguments.
    """
    require_drivable(subject)
    scheduler = subject.planned(count) if scheduler is None else scheduler
    first = sample * float(getattr(scheduler, "init_noise_sigma", 1.0))
    return [visit.after for visit in walk(subject, scheduler, first, smooth, **rest)]


def require_finite_at_any_rounding(subject: Subject, count: int, **extras: Any) -> None:
    """Raise Crash if a loop stops, or its samples are not finite, when its scalars are rounded up, or down.

    The difference of two numbers that are equal except for rounding is positive on one processor and negative on
    another. The root of a negative number is NaN. The verdict must be the same on all processors.
    """
    for direction, name in ((1, "up"), (-1, "down")):
        where = f"a loop whose scalars are rounded {name} in the last bit, as on another processor,"
        scheduler = subject.planned(count)
        first = normal(1, 1, 2, 2) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        try:
            with Rounded(direction):
                visits = walk(subject, scheduler, first, smooth, generator=torch.Generator().manual_seed(0), **extras)
        except Crash as crash:
            raise Crash(where, crash.error) from crash
        for visit in visits:
            if not bool(torch.isfinite(visit.after).all()):
                raise Crash(where, FloatingPointError(f"its sample after timestep {float(visit.timestep):g} has {unfit(visit.after)}"))


def smooth(sample: torch.Tensor, scaled: torch.Tensor, timestep: Any) -> torch.Tensor:
    """A model output that depends only on each element, and not on the prediction type."""
    return 0.8 * torch.tanh(scaled)


def require_drivable(subject: Subject) -> None:
    """Raise NotApplicable if `step` needs more than a loop has, or if the samples are not images.

    A scheduler of a known kind must follow the interface. The samples of another kind need not be continuous.
    """
    subject.require_plain_step()
    try:
        require_levels(subject)
    except NotApplicable:
        try:
            scheduler = subject.planned(subject.some_count)
            walk(subject, scheduler, normal(2, 4, 4, 4), smooth, generator=torch.Generator().manual_seed(0))
        except Crash as crash:
            raise NotApplicable(f"{subject.name} does not take images as samples: {crash}") from crash


def require_levels(subject: Subject) -> None:
    """Raise NotApplicable if the noise level of the samples is unknown, or if the model output must have another shape."""
    subject.require_kind()
    try:
        scheduler = subject.planned(subject.some_count)
        level_before(scheduler, as_values(scheduler.timesteps)[0])
        walk(subject, scheduler, normal(2, 4, 4, 4), smooth, last=1, generator=torch.Generator().manual_seed(0))
    except Crash as crash:
        if isinstance(crash.error, ValueError) and "model output channels" in str(crash.error):
            raise NotApplicable(f"{subject.name} takes model outputs of another shape: {crash.error}") from crash
        # `runs` and `timesteps_well_formed` report other errors.


def step(
    scheduler: Any, output: torch.Tensor, timestep: Any, sample: torch.Tensor, **known: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The previous sample from `step` (returned as tuple or object), and its `pred_original_sample` if it has one. Raises Crash."""
    with calling(f"step(model_output, {float(timestep):g}, sample)"):
        returned = scheduler.step(output, timestep, sample, **known)
        arrived = returned[0] if isinstance(returned, tuple) else returned.prev_sample
        if not isinstance(arrived, torch.Tensor):
            raise TypeError(f"step returned {type(arrived).__name__}, expected the previous sample")
        clean = getattr(returned, "pred_original_sample", None)
    return arrived, clean.clone() if isinstance(clean, torch.Tensor) else None


def scale(scheduler: Any, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
    """Result of `scale_model_input`, or the sample if there is no such method. Raises Crash."""
    if not hasattr(scheduler, "scale_model_input"):
        return sample
    with calling(f"scale_model_input(sample, {float(timestep):g})"):
        scaled: torch.Tensor = scheduler.scale_model_input(sample, timestep)
    return scaled


def level_before(scheduler: Any, timestep: Any) -> NoiseLevel:
    """Noise level before the step at a timestep. It is read from a copy, because some schedulers count their calls."""
    probe = copy.deepcopy(scheduler)
    sample = torch.ones(1, 1, 2, 2)
    return level_of_state(probe, level_in_loop(probe, sample, scale(probe, sample, timestep), timestep))


def level_of_state(scheduler: Any, level: NoiseLevel) -> NoiseLevel:
    """Noise level of the unscaled sample, where `level` is that of the model input."""
    if kind_of(scheduler) in ("sigma", "edm"):
        return NoiseLevel(torch.ones_like(level.alpha), level.sigma / level.alpha)
    return level


def declared_end(scheduler: Any) -> NoiseLevel:
    """Declared noise level after the last step: its last sigma, its `final_alpha_cumprod`, or the clean image."""
    kind = kind_of(scheduler)
    sigmas, timesteps = getattr(scheduler, "sigmas", None), scheduler.timesteps
    if sigmas is not None and len(sigmas) == len(timesteps) + 1:
        sigma = as_values(sigmas)[-1].to("cpu", torch.float64)
        if kind == "vp":
            return NoiseLevel.of_ratio(sigma)
        return NoiseLevel(1 - sigma if kind == "flow" else torch.ones_like(sigma), sigma)
    final = getattr(scheduler, "final_alpha_cumprod", None)
    if final is not None and kind == "vp":
        product = torch.as_tensor(final).to("cpu", torch.float64)
        return NoiseLevel(product.sqrt(), (1 - product).sqrt())
    return NoiseLevel(torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))


def sample_of(shape: Sequence[int], *, seed: int = 0) -> Callable[[NoiseLevel], torch.Tensor]:
    """A `start` for `run`: the constant image 0.25 with the noise of the first level, float32."""
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda level: (level.alpha * 0.25 + level.sigma * noise).float()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal noise of a shape, from a new generator with `seed`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def unfit(values: torch.Tensor) -> str:
    """Text with the numbers of NaN and infinite values."""
    nans, infinite = int(values.isnan().sum()), int(values.isinf().sum())
    return f"{nans} NaN and {infinite} infinite values (of {values.numel()})"
