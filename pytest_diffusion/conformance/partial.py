"""Laws of partial runs: a start in the middle (image-to-image), noising during a run (inpainting), and inversion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.arrivals import arrivals, restarts
from pytest_diffusion.conformance.calls import Crash, calling
from pytest_diffusion.conformance.forward import named_levels, require_noised
from pytest_diffusion.conformance.gaussian import posterior_mean
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.noising import IMAGE_SHAPE, noised, some_image
from pytest_diffusion.conformance.point_mass import require_arrival
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.levels import as_prediction, level_of_timestep
from pytest_diffusion.models.schedulers import as_values, evaluations_per_step, revisits_timesteps
from pytest_diffusion.verdicts.errors import NotApplicable


@law(
    "a run may start in the middle",
    source="SDEdit, arXiv:2108.01073, algorithm 1; diffusers' image-to-image pipelines",
    counts=(6, 10),
    rests_on=("runs", "point_mass_preserved", "terminal_step"),
)
def partial_start(subject: Subject, counts: Sequence[int]) -> None:
    """A run that starts from a noised image at a later timestep must end at the image, like a full run."""
    for count in subject.counts(*counts):
        _require_lands(subject, count, None)


@law(
    "a begin index starts the same run",
    source="diffusers' scheduler interface: set_begin_index",
    counts=(6, 10),
    rests_on=("runs", "point_mass_preserved", "terminal_step", "partial_start"),
)
def begin_index(subject: Subject, counts: Sequence[int]) -> None:
    """`set_begin_index(k)` before the first step must make step k the first one. The scheduler does not search for its timestep."""
    if not hasattr(subject.scheduler, "set_begin_index"):
        raise NotApplicable(f"{subject.name} has no set_begin_index.")
    for count in subject.counts(*counts):
        _require_lands(subject, count, "set_begin_index")


@law(
    "noising agrees with the run that it is part of",
    source="RePaint, arXiv:2201.09865, equation 8a; diffusers' inpainting and image-to-image pipelines",
    counts=(6,),
    least=2,
    rests_on=("runs", "forward_process", "begin_index"),
)
def noising_in_a_run(subject: Subject, counts: Sequence[int]) -> None:
    """Image-to-image noises its image after `set_begin_index`. Inpainting noises its known pixels between two steps.

    In both cases the timestep is that of the next step, and the result must have the noise level of that step.
    """
    method = subject.noising_method()
    if subject.is_inverse or revisits_timesteps(subject.scheduler) or restarts(subject, max(counts)):
        raise NotApplicable(f"{subject.name} goes from clean to noisy, or revisits timesteps.")
    image, noise = some_image(), walking.normal(*IMAGE_SHAPE)
    can_begin = hasattr(subject.scheduler, "set_begin_index")
    for count in subject.counts(*counts):
        order = evaluations_per_step(subject.scheduler)
        steps = loops.run(subject, count, lambda state, level: torch.zeros_like(state), loops.sample_of((1, 1, 2, 2))).steps
        for start in range(order, len(steps), order):
            situations = {f"after {start} steps": _begun(subject, count, None, start)}
            if can_begin:
                situations[f"after set_begin_index({start})"] = _begun(subject, count, start, start)
                situations[f"after set_begin_index({order}) and {start - order} steps"] = _begun(subject, count, order, start)
            timestep = as_values(situations[f"after {start} steps"].timesteps)[start]
            levels = [steps[start].level, *named_levels(subject, subject.planned(count), timestep)]
            for when, scheduler in situations.items():
                got = noised(scheduler, method, image, noise, timestep.repeat(len(image)))
                require_noised(got, image, noise, levels, f"{method} at timestep {float(timestep):g} {when}", count)


@law(
    "an inverse scheduler goes from the image to noise",
    source="DDIM, arXiv:2010.02502, section 4.3",
    counts=(5, 20),
)
def inverse_direction(subject: Subject, counts: Sequence[int]) -> None:
    """A class that is an inverse by its name must plan timesteps, and sigmas where it has them, that rise."""
    if not any("Inverse" in owner.__name__ for owner in subject.scheduler_class.__mro__):
        raise NotApplicable(f"{subject.name} is no inverse scheduler.")
    for count in subject.counts(*counts):
        planned = subject.planned(count)
        for name in ("timesteps", "sigmas"):
            values = getattr(planned, name, None)
            if values is not None and float(as_values(values)[0]) >= float(as_values(values)[len(planned.timesteps) - 1]):
                first, last = (float(as_values(values)[place]) for place in (0, len(planned.timesteps) - 1))
                raise Broken(f"{name} that rise", f"{name} from {first:.4g} to {last:.4g}: it denoises", count=count)


@law(
    "inversion and sampling undo one another",
    source="DDIM, arXiv:2010.02502, sections 4.3 and 5.4",
    counts=(25, 100),
    rests_on=("timesteps_well_formed",),
)
def inversion_round_trip(subject: Subject, counts: Sequence[int]) -> None:
    """An inverse scheduler maps an image to noise, and its forward scheduler must map this noise back. More steps reduce the error."""
    if not subject.is_inverse:
        raise NotApplicable(f"{subject.name} is no inverse scheduler.")
    partner = _partner(subject)
    gaps = []
    for count in subject.counts(*counts):
        image = posterior_mean_image()
        noise = _follow(subject, count, image)
        back = _follow(partner, count, noise)
        gaps.append((count, float((back - image).double().square().mean().sqrt())))
    (few, worse), (many, better) = gaps[0], gaps[-1]
    if not (better < 0.05 and (few == many or better < 0.6 * worse)):
        seen = f"the restored image has an error of {worse:.3g} in {few} steps and of {better:.3g} in {many}"
        raise Broken(
            f"an image that is restored, with a smaller error for more steps (by {type(partner.scheduler).__name__})", seen, count=many
        )


def _begun(subject: Subject, count: int, first: int | None, start: int) -> Any:
    """A scheduler before step number `start` of a run that began at `first` (by set_begin_index, unless `first` is None)."""
    scheduler = subject.planned(count)
    if first is not None:
        with calling(f"set_begin_index({first})", scheduler):
            scheduler.set_begin_index(first)
    generator = torch.Generator().manual_seed(0)
    if start > (first or 0):
        walking.walk(subject, scheduler, walking.normal(1, 1, 2, 2), walking.smooth, first=first or 0, last=start, generator=generator)
    return scheduler


def posterior_mean_image() -> torch.Tensor:
    """Images (4, 2, 2, 3) from the normal distribution whose denoiser is `gaussian.posterior_mean`."""
    from pytest_diffusion.conformance.gaussian import MEAN, VARIANCES

    # Within one standard deviation of the mean, where clipping has no effect.
    return (MEAN + VARIANCES.sqrt() * walking.normal(4, 2, 2, 3, dtype=torch.float64).clamp(-1, 1)).float()


def _require_lands(subject: Subject, count: int, method: str | None) -> None:
    if revisits_timesteps(subject.scheduler) or restarts(subject, count):
        raise NotApplicable(f"{subject.name} has warm-up steps or revisits timesteps, so a run cannot start in the middle.")
    loops.require_levels(subject)
    loops.require_drivable(subject)
    order = evaluations_per_step(subject.scheduler)
    planned = subject.planned(count)
    _require_finite_from_everywhere(subject, count, method, order)
    # Single-step solvers have blocks of steps; a start inside a block lacks the first stage.
    blocks = getattr(planned, "order_list", None)
    length = walking.length_of(subject, planned)
    starts = [start for start in range(order, length, order) if blocks is None or blocks[min(start, len(blocks) - 1)] == 1]
    if not starts:
        raise NotApplicable(f"{subject.name} has no step in {count} at which a run may start.")
    for start in starts[:: max(1, len(starts) // 3)]:
        scheduler = subject.planned(count)
        reading = subject.reading_of(scheduler)
        if method is not None:
            with calling(f"set_begin_index({start})", scheduler):
                scheduler.set_begin_index(start)
        try:
            parts = arrivals(subject, count, start=start, scheduler=scheduler, reading=reading)
        except Crash as crash:
            raise Broken(f"a run that starts at step {start} of {count}", str(crash), count=count) from crash
        for one in parts[:-1]:
            require_arrival(subject, one, count, where=f" of a run that starts at step {start}")
        end = parts[-1]
        # Some solvers integrate their coefficients numerically, with an error of 1e-3.
        slack = 3 * end.tolerance + 5e-3
        if not (abs(end.clean - float(end.target.alpha)) <= slack and abs(end.total - float(end.target.sigma)) <= slack):
            seen = f"a run from step {start} ends at {end.clean:.4g}·image and {end.total:.4g}·noise"
            raise Broken(
                f"{float(end.target.alpha):.4g}·image and {float(end.target.sigma):.4g}·noise after the last step", seen, count=count
            )


def _require_finite_from_everywhere(subject: Subject, count: int, method: str | None, order: int) -> None:
    """Raise Broken unless a run from any step ends with finite samples."""
    for start in range(order, walking.length_of(subject, subject.planned(count)), order):
        scheduler = subject.planned(count) if method is None else _begun(subject, count, start, start)
        try:
            visits = walking.walk(
                subject, scheduler, walking.normal(2, 4, 4, 4), walking.smooth, first=start, generator=torch.Generator().manual_seed(0)
            )
        except Crash as crash:
            raise Broken(f"a run that starts at step {start} of {count}", str(crash), count=count) from crash
        if not bool(torch.isfinite(visits[-1].after).all()):
            seen = f"{walking.unfit(visits[-1].after)} at the end of a run from step {start}"
            raise Broken("finite samples from a run that starts in the middle", seen, count=count)


def _partner(subject: Subject) -> Subject:
    import diffusers

    names = [one.__name__.replace("Inverse", "") for one in subject.scheduler_class.__mro__ if "Inverse" in one.__name__]
    partner: Any = next((getattr(diffusers, name) for name in names if hasattr(diffusers, name)), None)
    if partner is None:
        raise NotApplicable(f"{subject.name} has no forward scheduler in diffusers (a class with the same name without Inverse).")
    with calling(f"{partner.__name__}.from_config"):
        return Subject(
            partner.from_config(subject.scheduler.config, clip_sample=False)
            if "clip_sample" in subject.config
            else partner.from_config(subject.scheduler.config)
        )


def _follow(subject: Subject, count: int, sample: torch.Tensor) -> torch.Tensor:
    """Last sample of a run whose model takes the noise level from the timestep, as a network does."""
    scheduler = subject.planned(count)

    def predict(own: torch.Tensor, scaled: torch.Tensor, timestep: Any) -> torch.Tensor:
        level = level_of_timestep(scheduler, timestep)
        return as_prediction(posterior_mean(scaled, level).to(scaled), scaled, level, subject.prediction_type, scheduler=scheduler)

    return walking.walk(subject, scheduler, sample, predict, replace=torch.zeros_like)[-1].after
