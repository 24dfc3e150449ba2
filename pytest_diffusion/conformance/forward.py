"""Laws of the forward process: noising has the schedule's marginals, is a pure function, and agrees with the velocity."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.calls import Crash, calling
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.noising import IMAGE_SHAPE, noised, some_image
from pytest_diffusion.conformance.randomness import Draws
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.levels import NoiseLevel, level_of_timestep
from pytest_diffusion.models.schedulers import as_values, attribute, evaluations_per_step
from pytest_diffusion.verdicts.errors import NotApplicable


@law(
    "noising has the schedule's mean and variance",
    source="arXiv:2006.11239, equation 4; arXiv:2206.00364, table 1; arXiv:2210.02747, equation 20",
    counts=(3, 7, 20, 100),
    rests_on=("runs", "timesteps_well_formed", "timesteps_match_sigmas"),
)
def forward_process(subject: Subject, counts: Sequence[int]) -> None:
    """`add_noise` (`scale_noise` for flow matching) must return α·x₀ + σ·noise with the given noise.

    α and σ must be those of the sampling loop at the same timestep.
    """
    method = subject.noising_method()
    _require_direction(subject)
    image, noise = some_image(), walking.normal(*IMAGE_SHAPE)
    for count in subject.counts(*counts):
        scheduler = subject.planned(count)
        _require_everywhere(subject, method, image, noise, count)
        for timestep, level in _levels(subject, scheduler):
            with Draws() as seen:
                got = noised(copy.deepcopy(scheduler), method, image, noise, timestep.reshape(1))
            if seen.draws:
                raise Broken(f"{method} to use the given noise", f"it draws noise itself (torch's {seen.draws[0].operator})", count=count)
            require_noised(
                got, image, noise, [level, *named_levels(subject, scheduler, timestep)], f"{method} at timestep {float(timestep):g}", count
            )


@law(
    "noising without a loop uses the noise that it is given",
    source="diffusers' scheduler interface: add_noise(original_samples, noise, timesteps)",
    rests_on=(),
)
def noising_alone(subject: Subject, counts: Sequence[int]) -> None:
    """A scheduler without `step` must add the given noise to the image, and must not draw noise itself."""
    del counts
    if callable(getattr(subject.scheduler, "step", None)):
        raise NotApplicable(f"{subject.name} has a loop: see `forward_process`.")
    image, noise = some_image(), walking.normal(*IMAGE_SHAPE)
    with Draws() as seen:
        got = noised(subject.planned(subject.some_count), "add_noise", image, noise, torch.ones(len(image), dtype=torch.long))
    if seen.draws:
        raise Broken("add_noise to use the given noise", f"it draws noise itself (torch's {seen.draws[0].operator})")
    matrix, column = torch.stack([image.flatten(), noise.flatten()], dim=1).double(), got.double().flatten()[:, None]
    rest = float((matrix @ torch.linalg.lstsq(matrix, column).solution - column).abs().max())
    if not rest <= 1e-3 * max(1.0, float(got.abs().max())):
        raise Broken("a sum of image and noise", f"add_noise leaves a remainder of {rest:.3g}")


@law(
    "noising depends on its arguments alone",
    source="diffusers' scheduler interface: add_noise(original_samples, noise, timesteps)",
    counts=(7,),
    rests_on=("runs", "forward_process"),
)
def forward_is_pure(subject: Subject, counts: Sequence[int]) -> None:
    """The same image, noise and timestep must give the same result after any earlier calls.

    Each image of a batch has its own timestep, and training adds noise without a call of `set_timesteps`.
    """
    method = subject.noising_method()
    image, noise = some_image(), walking.normal(*IMAGE_SHAPE)
    for count in subject.counts(*counts):
        scheduler = subject.planned(count)
        levels = _levels(subject, scheduler)
        (early, _), (late, _) = levels[0], levels[-1]
        once = noised(scheduler, method, image, noise, late.repeat(len(image)))
        noised(scheduler, method, image, noise, early.repeat(len(image)))
        again = noised(scheduler, method, image, noise, late.repeat(len(image)))
        fresh = noised(subject.planned(count), method, image, noise, early.repeat(len(image)))
        after = noised(scheduler, method, image, noise, early.repeat(len(image)))
        for one, other in ((once, again), (fresh, after)):
            if not torch.equal(one, other):
                seen = f"{method} gives results that differ by {float((one - other).abs().max()):.4g} after a call with another timestep"
                raise Broken("the same result for the same arguments", seen, count=count)
        mixed = noised(scheduler, method, image, noise, torch.stack([early, late]))
        apart = torch.cat([fresh[:1], once[1:]])
        if mixed.shape != apart.shape or not torch.allclose(mixed, apart, rtol=1e-5, atol=1e-6):
            seen = f"{method} with timesteps [{float(early):g}, {float(late):g}] differs from separate calls"
            raise Broken("each image of a batch to be noised by its own timestep", seen, count=count)
        _require_no_trace_of_halves(subject, method, count)
    _require_before_planning(subject, method, image, noise)


@law(
    "velocity agrees with noising",
    source="Progressive Distillation, arXiv:2202.00512, section 4",
    counts=(7,),
    rests_on=("runs", "forward_process"),
)
def velocity(subject: Subject, counts: Sequence[int]) -> None:
    """`get_velocity` must return α·noise − σ·x₀ with α and σ of `add_noise` at the same timestep."""
    if not hasattr(subject.scheduler, "get_velocity") or subject.kind == "flow":
        raise NotApplicable(f"{subject.name} has no get_velocity.")
    image, noise = some_image(), walking.normal(*IMAGE_SHAPE)
    for count in subject.counts(*counts):
        scheduler = subject.planned(count)
        for timestep, level in _levels(subject, scheduler):
            with calling(f"get_velocity(sample, noise, {float(timestep):g})"):
                got = scheduler.get_velocity(image, noise, timestep.repeat(len(image)))
            ratio = level.sigma / level.alpha if float(level.alpha) > 0 else torch.tensor(float("inf"))
            own = NoiseLevel.of_ratio(ratio)
            named = [
                NoiseLevel.of_ratio(one.sigma / one.alpha) for one in named_levels(subject, scheduler, timestep) if float(one.alpha) > 0
            ]
            turned = [NoiseLevel(-one.sigma, one.alpha) for one in (own, *named)]
            require_noised(got, image, noise, turned, f"get_velocity at timestep {float(timestep):g}", count)
        _require_velocity_of_each(scheduler, image, noise, count)


def _require_everywhere(subject: Subject, method: str, image: torch.Tensor, noise: torch.Tensor, count: int) -> None:
    """Raise Broken unless noising works at every timestep of the plan, also where two of them are rounded to the same one."""
    scheduler = subject.planned(count)
    for timestep in as_values(scheduler.timesteps):
        try:
            got = noised(copy.deepcopy(scheduler), method, image, noise, timestep.reshape(1))
        except Crash as crash:
            raise Broken(f"{method} to work at every timestep of the plan", str(crash), count=count) from crash
        if not bool(torch.isfinite(got).all()):
            raise Broken(f"finite images from {method}", f"{walking.unfit(got)} at timestep {float(timestep):g}", count=count)


def _require_no_trace_of_halves(subject: Subject, method: str, count: int) -> None:
    """Raise Broken if noising in half precision makes the schedule less precise."""
    scheduler, fresh = subject.planned(count), subject.planned(count)
    timesteps = as_values(scheduler.timesteps)[-1:].repeat(IMAGE_SHAPE[0])
    image, noise = some_image(), walking.normal(*IMAGE_SHAPE)
    try:
        noised(scheduler, method, image.half(), noise.half(), timesteps)
    except Crash:
        return  # `dtype_kept` reports this
    after, before = (noised(one, method, image, noise, timesteps) for one in (scheduler, fresh))
    if not torch.equal(after, before):
        seen = f"{method} in float32 differs by {float((after - before).abs().max()):.4g} after {method} in float16"
        raise Broken("the same result for the same arguments", seen, count=count)


def _require_velocity_of_each(scheduler: Any, image: torch.Tensor, noise: torch.Tensor, count: int) -> None:
    """Raise Broken unless each image of a batch gets the velocity of its own timestep."""
    pair = as_values(scheduler.timesteps)[[0, -1]]
    with calling("get_velocity(sample, noise, timesteps)"):
        mixed = scheduler.get_velocity(image, noise, pair)
        apart = torch.cat([scheduler.get_velocity(image[[row]], noise[[row]], pair[[row]]) for row in range(2)])
    if mixed.shape != apart.shape or not torch.allclose(mixed, apart, rtol=1e-5, atol=1e-6):
        seen = f"get_velocity with timesteps {[round(float(one), 3) for one in pair]} differs from separate calls"
        raise Broken("the velocity of each image of a batch at its own timestep", seen, count=count)


def _require_direction(subject: Subject) -> None:
    subject.require_plain_step()
    if subject.is_inverse:
        raise NotApplicable(f"{subject.name} is an inverse scheduler: its timesteps do not give the noise level of its samples.")


def _levels(subject: Subject, scheduler: Any) -> list[tuple[torch.Tensor, NoiseLevel]]:
    """Up to eight timesteps of the loop, each with its noise level. Timesteps with more than one level are left out."""
    _require_direction(subject)
    count = len(scheduler.timesteps)
    found = loops.run(
        subject, count, lambda sample, level: torch.zeros_like(sample), loops.sample_of((1, 1, 2, 2)), scheduler=copy.deepcopy(scheduler)
    )
    by_timestep: dict[float, list[NoiseLevel]] = {}
    # No pipeline noises an image to a level between two evaluations of one step.
    for one in found.steps[:: evaluations_per_step(scheduler)]:
        by_timestep.setdefault(one.timestep, []).append(one.level)
    kept = []
    for timestep in as_values(scheduler.timesteps).unique().flip(0):
        levels = by_timestep.get(float(timestep), [])
        # Two sigmas may have the same rounded timestep; the scheduler may use either.
        if levels and all(abs(float(level.sigma) - float(levels[0].sigma)) < 1e-6 for level in levels):
            kept.append((timestep, levels[0]))
    if not kept:
        raise NotApplicable(f"{subject.name} has no timestep with a single noise level.")
    return [kept[int(place)] for place in torch.linspace(0, len(kept) - 1, min(8, len(kept)))]


def named_levels(subject: Subject, scheduler: Any, timestep: torch.Tensor) -> list[NoiseLevel]:
    """The noise level of the timestep in training, which a scheduler without a plan uses for a rounded timestep."""
    if subject.kind in ("edm", "flow") or getattr(scheduler, "alphas_cumprod", None) is None:
        return []
    return [loops.level_of_state(scheduler, level_of_timestep(scheduler, timestep))]


def require_noised(
    got: torch.Tensor,
    image: torch.Tensor,
    noise: torch.Tensor,
    levels: list[NoiseLevel],
    what: str,
    count: int,
    bounds: Sequence[NoiseLevel] = (),
) -> None:
    """Raise Broken unless `got` is α·image + σ·noise at one of the levels, or at a σ within `bounds`."""
    if got.shape != image.shape:
        raise Broken(f"the image's shape {tuple(image.shape)}", f"{what} gives {tuple(got.shape)}", count=count)
    matrix = torch.stack([image.double().flatten(), noise.double().flatten()], dim=1)
    kept, added = torch.linalg.lstsq(matrix, got.double().flatten().unsqueeze(1), driver="gelsd").solution.flatten().tolist()
    rest = float((got.double() - kept * image - added * noise).abs().max())
    for level in levels:
        scale = max(abs(float(level.alpha)), abs(float(level.sigma)))
        if max(abs(kept - float(level.alpha)), abs(added - float(level.sigma)), rest) <= 1e-3 * scale:
            return
    if (
        bounds
        and rest <= 1e-3
        and min(float(one.sigma) for one in bounds) * 0.99 <= added <= max(float(one.sigma) for one in bounds) * 1.01
    ):
        return
    wanted = levels[0]
    seen = f"{what} gives {kept:.5g}·image + {added:.5g}·noise" + (f" and a remainder of {rest:.3g}" if rest > 1e-3 else "")
    raise Broken(f"{float(wanted.alpha):.5g}·image + {float(wanted.sigma):.5g}·noise", seen, count=count)


def _require_before_planning(subject: Subject, method: str, image: torch.Tensor, noise: torch.Tensor) -> None:
    """Raise Broken if noising is wrong before `set_timesteps`, which training never calls."""
    scheduler = subject.fresh()
    timesteps = attribute(scheduler, "timesteps")
    told = subject.kind == "flow" or getattr(scheduler, "alphas_cumprod", None) is not None
    if timesteps is None or len(timesteps) < 2 or subject.kind == "edm" or subject.has_readings or not told:
        return
    known = as_values(timesteps)[:: evaluations_per_step(scheduler)]
    # Before `set_timesteps`, a rounded timestep may stand for the sigma of its neighbour.
    neighbours = (-1.0, 1.0) if subject.kind == "sigma" else ()
    for timestep in known[[0, len(known) // 2, len(known) - 1]]:
        level = level_of_timestep(scheduler, timestep)
        wanted = [loops.level_of_state(scheduler, level)]
        bounds = [loops.level_of_state(scheduler, level_of_timestep(scheduler, timestep + shift)) for shift in neighbours]
        if subject.kind == "flow" and attribute(scheduler, "sigmas") is None:
            return  # it has no schedule before set_timesteps
        if subject.kind == "flow":
            sigma = as_values(scheduler.sigmas)[int((as_values(timesteps) == timestep).nonzero()[0])].double()
            wanted = [NoiseLevel(1 - sigma, sigma)]
        # Training uses whole timesteps.
        asked = timestep.long() if float(timestep) == int(timestep) and subject.kind != "flow" else timestep
        got = noised(scheduler, method, image, noise, asked.reshape(1))
        require_noised(got, image, noise, wanted, f"{method} before set_timesteps, at timestep {float(timestep):g},", 0, bounds)
