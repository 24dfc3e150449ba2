"""A sampling loop as in pipelines: with an exact denoiser and known noise levels, or with any function as the model."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.randomness import Draw
from pytest_diffusion.conformance.readings import Reading
from pytest_diffusion.conformance.refusals import is_on_purpose
from pytest_diffusion.conformance.rounding import Rounded
from pytest_diffusion.conformance.subject import TOWARDS_DATA, Subject
from pytest_diffusion.conformance.walking import first_step, normal, scale, smooth, unfit, walk
from pytest_diffusion.models.levels import NoiseLevel, as_prediction, kind_of, level_in_loop
from pytest_diffusion.models.schedulers import as_values, config_value
from pytest_diffusion.verdicts.errors import NotApplicable

LARGE_STEPS = 10
"""Largest number of inference steps for the rounding test: noise levels are far apart, and differences of squares cancel."""
Denoiser = Callable[[torch.Tensor, NoiseLevel], torch.Tensor]


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


def run(
    subject: Subject,
    num_inference_steps: int,
    denoiser: Denoiser,
    start: Callable[[NoiseLevel], torch.Tensor],
    *,
    scheduler: Any = None,
    reading: Reading | None = None,
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
    reading = subject.reading_of(scheduler) if reading is None else reading

    def predict(sample: torch.Tensor, scaled: torch.Tensor, timestep: Any) -> torch.Tensor:
        if not bool(torch.isfinite(scaled).all()):
            raise Crash(f"a loop at timestep {float(timestep):g}", FloatingPointError(f"its sample has {unfit(scaled)}"))
        if reading is not None:
            levels.append(reading.levels[first + len(levels)])
            clean = denoiser(sample, levels[-1]).to(sample)
            return _told(subject, clean, scaled, _scaled(levels[-1], sample, scaled))
        level = level_in_loop(scheduler, sample, scaled, timestep)
        levels.append(level_of_state(scheduler, level))
        clean = denoiser(sample, levels[-1]).to(sample)
        return _told(subject, clean, scaled, level, scheduler)

    sample = start(level_before(subject, scheduler, first) if reading is None else reading.levels[first])
    visits = walk(subject, scheduler, sample, predict, first=first, **rest)
    steps = [
        Step(float(one.timestep), level, one.before, one.after, one.draws, one.goes_on, one.clean)
        for one, level in zip(visits, levels, strict=True)
    ]
    return Run(steps, declared_end(scheduler) if reading is None else reading.end)


def _told(subject: Subject, clean: torch.Tensor, scaled: torch.Tensor, level: NoiseLevel, scheduler: Any = None) -> torch.Tensor:
    """The model's output for a known image."""
    if subject.prediction_type == TOWARDS_DATA:
        return -as_prediction(clean, scaled, level, "flow_prediction")
    return as_prediction(clean, scaled, level, subject.prediction_type, scheduler=scheduler)


def _scaled(level: NoiseLevel, sample: torch.Tensor, scaled: torch.Tensor) -> NoiseLevel:
    """The level of the model's input, which is the sample times a number."""
    largest = sample.abs().flatten().argmax()
    factor = scaled.flatten()[largest].double() / sample.flatten()[largest].double()
    return NoiseLevel(level.alpha * factor, level.sigma * factor)


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
    subject.require_plain_step()
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


def require_drivable(subject: Subject) -> None:
    """Raise NotApplicable if `step` needs more than a loop has, or if its samples are token ids. Raises Crash for a loop that dies."""
    subject.require_plain_step()
    try:
        require_levels(subject)
    except NotApplicable:
        scheduler = subject.planned(subject.some_count)
        try:
            walk(subject, scheduler, normal(2, 4, 4, 4), smooth, generator=torch.Generator().manual_seed(0))
        except Crash as crash:
            if _takes_tokens(subject):
                raise NotApplicable(f"{subject.name} takes token ids as samples, not images; there are no laws for them.") from None
            if refuses_output(subject, crash):
                raise NotApplicable(other_form(subject, crash.error)) from None
            if (name := _lacking_argument(subject, crash)) is not None:
                raise NotApplicable(
                    f"{subject.name}.step needs {name}, which a sampling loop does not have: {crash.error} "
                    f"Declare it: check_scheduler(..., step={{{name!r}: ...}})."
                ) from None
            raise


OF_RANK = r"\b[1-5]-?D\b|dimension|rank|shape"
_OF_OUTPUT = re.compile(rf"model.output|channels|{OF_RANK}", re.IGNORECASE)


def refuses_output(subject: Subject, crash: Crash) -> bool:
    """Whether a crash is a refusal of the model's output, on purpose: the model has more channels, or another layout.

    Such a scheduler refuses the first step of any run, so that a later or a rarer error of such a text is a crash.
    """
    if not _is_about_output(subject, crash):
        return False
    if subject.refuses_outputs is None:
        subject.refuses_outputs = False
        subject.refuses_outputs = all(
            _refuses_first_step(subject, count) for count in subject.counts(1, 2, 4, 5, 7, 10) or [subject.some_count]
        )
    return subject.refuses_outputs


def _refuses_first_step(subject: Subject, count: int) -> bool:
    try:
        first_step(subject, count)
    except Crash as first:
        return _is_about_output(subject, first)
    except NotApplicable:
        pass
    return False


def other_form(subject: Subject, told: object) -> str:
    """The reason of a law that does not apply, where the scheduler refuses the outputs of the suite's models."""
    hint = "" if subject.shape is not None else " If it takes samples of one shape, declare it: check_scheduler(..., shape=(...))."
    return f"{subject.name} takes model outputs of another form: {told}{hint}"


def _is_about_output(subject: Subject, crash: Crash) -> bool:
    return is_on_purpose(crash.error, subject.scheduler_class) and _OF_OUTPUT.search(str(crash.error)) is not None


def require_not_refused(subject: Subject, crash: Crash, what: str, about: re.Pattern[str]) -> None:
    """Raise NotApplicable if a class of one's own refuses tensors of a shape or dtype on purpose, and says so."""
    if not subject.is_of_diffusers and is_on_purpose(crash.error, subject.scheduler_class) and about.search(str(crash.error)):
        raise NotApplicable(f"{subject.name} refuses {what}: {crash.error}") from crash


def _lacking_argument(subject: Subject, crash: Crash) -> str | None:
    """The optional argument without which `step` refuses to work."""
    if not is_on_purpose(crash.error, subject.scheduler_class):
        return None
    optional = (name for name, one in subject.step_parameters.items() if one.default is None and name not in subject.step_arguments)
    return next((name for name in optional if re.search(rf"\b{name}\b", str(crash.error))), None)


def _takes_tokens(subject: Subject) -> bool:
    """Whether a loop runs on token ids, with scores for each token as the model's output: (N, classes, ...) or (N, ..., classes)."""
    generator = torch.Generator().manual_seed(0)
    classes = int(config_value(subject.scheduler, "num_vec_classes") or config_value(subject.scheduler, "mask_token_id") or 15)
    # The mask may be one of the classes that the model predicts, or one more.
    for shape, place, predicted in itertools.product(((2, 32), (2, 4, 4)), (1, -1), (classes, classes - 1)):
        scores = torch.randn(*shape, predicted, generator=generator).log_softmax(-1).movedim(-1, place)
        sample = torch.full(shape, classes - 1)
        try:
            scheduler = subject.planned(subject.some_count)
            found = walk(subject, scheduler, sample, lambda *_, scores=scores: scores, generator=torch.Generator().manual_seed(0))
        except Exception:  # noqa: S112 - an image's scheduler may die on integers in any way
            continue
        if found and not found[-1].after.is_floating_point():
            return True
    return False


def require_levels(subject: Subject) -> None:
    """Raise NotApplicable if the noise level of the samples is unknown, or if the model output must have another shape."""
    subject.require_kind()
    try:
        scheduler = subject.planned(subject.some_count)
        level_before(subject, scheduler, 0)
        first_step(subject)
    except Crash as crash:
        if refuses_output(subject, crash):
            raise NotApplicable(other_form(subject, crash.error)) from crash
        # `runs` and `timesteps_well_formed` report other errors.


def level_before(subject: Subject, scheduler: Any, index: int) -> NoiseLevel:
    """Noise level before a step of the plan. It is read from a copy, because some schedulers count their calls."""
    reading = subject.reading_of(scheduler)
    if reading is not None:
        return reading.levels[index]
    timestep = as_values(scheduler.timesteps)[index]
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
