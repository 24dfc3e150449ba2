"""One sampling loop as in pipelines, with any function as the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from pytest_diffusion.conformance.calls import Crash, calling
from pytest_diffusion.conformance.candidate import EXTRAS
from pytest_diffusion.conformance.randomness import Draw, Draws
from pytest_diffusion.conformance.shaped import replacing, small_draws
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import config_value
from pytest_diffusion.verdicts.errors import NotApplicable

Predictor = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]


class NoSample(NotApplicable):
    """A step has given no sample."""


class Visit(NamedTuple):
    """One call of `step`: the state before and after, the random draws, and whether the next call starts from the state after."""

    timestep: Any
    before: torch.Tensor
    after: torch.Tensor
    draws: list[Draw]
    goes_on: bool = True
    clean: torch.Tensor | None = None
    """The `pred_original_sample` of the step, if it has one."""


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
    records: bool = True,
    **extras: Any,
) -> list[Visit]:
    """Visits of a planned scheduler from timestep number `first` up to `last`, with outputs `predict(sample, scaled sample, timestep)`.

    `replace` returns other values for the random draws of a step. Without `records` draws are not seen: the mode that sees them slows each
    operation down. Raises Crash for the scheduler's errors.
    """
    visits: list[Visit] = []
    # As in the loop of a pipeline: if timesteps are a list, these are Python numbers.
    timesteps = list(scheduler.timesteps)
    # Only inpainting schedulers use these: a known image, and the mask of its known part.
    extras = {"original_image": torch.full_like(sample, 0.25), "mask": torch.ones_like(sample), **subject.step_arguments, **extras}
    known = {name: value for name, value in extras.items() if name in subject.step_parameters or name not in EXTRAS}
    earlier: Any = None
    for index in range(first, length_of(subject, scheduler) if last is None else last):
        timestep = timesteps[index]
        if visits and hasattr(scheduler, "undo_step") and timestep > earlier:
            with calling(f"undo_step(..., {float(timestep):g})", scheduler):
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
        told = timestep if not is_told_each(subject) else torch.as_tensor(timestep).repeat(len(sample))
        shape = subject.shape
        if "generator" in subject.step_parameters and subject.step_parameters["generator"].default is inspect.Parameter.empty:
            known.setdefault("generator", torch.Generator().manual_seed(0))
        seen = Draws(replace if replace is None or shape is None else replacing(replace, sample.shape, shape))
        with seen if records else nullcontext():
            arrived, clean = _required(subject, scheduler, output, told, sample, known)
        # Clones, because a step may work in place; only `inputs_untouched` reports that.
        draws = seen.draws if shape is None else small_draws(seen.draws, sample.shape, shape)
        visits.append(Visit(timestep, before, arrived.clone(), draws, clean=clean))
        sample = arrived
    return visits


def _required(
    subject: Subject, scheduler: Any, output: torch.Tensor, timestep: Any, sample: torch.Tensor, known: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The result of a step. A scheduler that gave a sample once, and then none, is broken, and not one of another interface."""
    try:
        found = step(scheduler, output, timestep, sample, **known)
    except NoSample as reason:
        if not subject.gives_samples:
            raise
        raise Crash(f"step(model_output, {float(torch.as_tensor(timestep).flatten()[0]):g}, sample)", TypeError(str(reason))) from reason
    subject.gives_samples = True
    return found


def smooth(sample: torch.Tensor, scaled: torch.Tensor, timestep: Any) -> torch.Tensor:
    """A model output that depends only on each element, and not on the prediction type."""
    return 0.8 * torch.tanh(scaled)


def step(
    scheduler: Any, output: torch.Tensor, timestep: Any, sample: torch.Tensor, **known: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The previous sample from `step` (returned as tuple or object), and its `pred_original_sample` if it has one.

    Raises Crash, and NotApplicable if it returns something else.
    """
    with calling(f"step(model_output, {float(torch.as_tensor(timestep).flatten()[0]):g}, sample)", scheduler):
        returned = scheduler.step(output, timestep, sample, **known)
    arrived = _named(returned, "prev_sample")
    arrived = returned[0] if arrived is None and isinstance(returned, tuple) and returned else arrived
    if not isinstance(arrived, torch.Tensor):
        name = type(scheduler).__name__
        raise NoSample(
            f"{name}.step returns {_described(returned)}; a pipeline reads `prev_sample`, or the first entry of a tuple, as a tensor."
        )
    clean = _named(returned, "pred_original_sample")
    return arrived, clean.clone() if isinstance(clean, torch.Tensor) else None


def _named(returned: Any, name: str) -> Any:
    found = getattr(returned, name, None)
    return returned.get(name) if found is None and isinstance(returned, dict) else found


def _described(returned: Any) -> str:
    if isinstance(returned, tuple):
        return f"a tuple of {', '.join(type(one).__name__ for one in returned) or 'nothing'}"
    return f"a bare {type(returned).__name__}" if returned is not None else "nothing"


def is_told_each(subject: Subject) -> bool:
    """Whether `step` takes a timestep for each image, and not one for all."""
    if subject.is_told_each is None:
        subject.is_told_each = False  # the loops below ask too
        try:
            first_step(subject)
        except Crash:
            subject.is_told_each = True
            try:
                first_step(subject)
            except (Crash, NotApplicable):
                subject.is_told_each = False
        except NotApplicable:
            pass
    return subject.is_told_each


def length_of(subject: Subject, planned: Any) -> int:
    """Number of calls of `step` in a plan."""
    return len(planned.timesteps) - subject.names_end


def first_step(subject: Subject, count: int | None = None) -> None:
    """One step of a plan, by default a small one, in float32. Raises Crash."""
    scheduler = subject.planned(count or subject.some_count)
    walk(subject, scheduler, normal(2, 4, 4, 4), smooth, last=1, generator=torch.Generator().manual_seed(0))


def scale(scheduler: Any, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
    """Result of `scale_model_input`, or the sample if there is no such method. Raises Crash."""
    if not hasattr(scheduler, "scale_model_input"):
        return sample
    with calling(f"scale_model_input(sample, {float(timestep):g})"):
        scaled: torch.Tensor = scheduler.scale_model_input(sample, timestep)
    return scaled


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal noise of a shape, from a new generator with `seed`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def unfit(values: torch.Tensor) -> str:
    """Text with the numbers of NaN and infinite values."""
    nans, infinite = int(values.isnan().sum()), int(values.isinf().sum())
    return f"{nans} NaN and {infinite} infinite values (of {values.numel()})"
