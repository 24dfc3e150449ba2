"""The result of one step on a known image, decomposed by regression.

If the data are a single image c, the ideal denoiser always predicts c, so a state α·c + σ·ε must become α'·c + σ'·ε'.
One step of any solver then gives a·c + b·ε + Σ d·z, where z is the noise that it drew. Least squares over the elements gives
a, b and d without error.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence, ValuesView
from typing import Any, NamedTuple

import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.adapters import Adapted
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.randomness import Draw
from pytest_diffusion.conformance.readings import Reading
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.levels import NoiseLevel
from pytest_diffusion.models.schedulers import as_values, config_value, evaluations_per_step
from pytest_diffusion.verdicts.errors import NotApplicable

SHAPE = (2, 4, 16, 16)


_FLOAT = 2.0**-23
_MEMORY_OF_SAMPLERS = 4
"""Earlier steps that a sampler behind an adapter may use, which keeps them in its variables: those of LMS."""


class Arrival(NamedTuple):
    """Result of one step: `clean`·c + `kept`·ε + Σ `added`·z + a remainder with root mean square `rest`; all in float64."""

    number: int
    step: loops.Step
    target: NoiseLevel
    clean: float
    kept: float
    added: list[float]
    rest: float
    tolerance: float
    spread: float
    """Root mean square of everything except the image."""
    staged: tuple[float, ...] = ()
    """Weights of the draws of earlier stages; `kept` is then the weight of the noise before the first one."""

    @property
    def fresh(self) -> float:
        """Standard deviation of the noise that the step added, including noise that was not recorded as a draw."""
        return math.hypot(*self.added, 0.0 if self.rest <= self.tolerance else self.rest)

    @property
    def is_right(self) -> bool:
        """Whether image and noise have the weights of the target level."""
        return max(abs(self.clean - float(self.target.alpha)), abs(self.total - float(self.target.sigma))) <= self.tolerance

    @property
    def total(self) -> float:
        """Standard deviation of all noise after the step; if its parts are unknown, `spread`."""
        return math.hypot(self.kept, self.fresh, *self.staged) if self.rest <= self.tolerance else self.spread


def arrivals(
    subject: Subject, count: int, *, start: int = 0, scheduler: Any = None, reading: Reading | None = None, **extras: Any
) -> list[Arrival]:
    """Decomposition of every step of a loop on a single image; from step `start` on, as in image-to-image.

    `reading` is that of the plan, where a scheduler is given that would noise otherwise by now.
    """
    if subject.is_inverse:
        raise NotApplicable(f"{subject.name} is an inverse scheduler: its timesteps do not give the noise level of its samples.")
    image, noise = image_and_noise()
    scheduler = subject.planned(count) if scheduler is None else scheduler
    known = {"generator": torch.Generator().manual_seed(1), "original_image": image.float(), "mask": torch.ones(SHAPE)}
    found = loops.run(
        subject,
        count,
        lambda sample, level: image,
        lambda level: (level.alpha * image + level.sigma * noise).float(),
        scheduler=scheduler,
        reading=reading,
        first=start,
        **{**known, **extras},
    )
    targets = found.levels[1:]
    order = evaluations_per_step(scheduler)
    memory = _kept_states(scheduler, found.steps[-1].after)
    parts: list[Arrival] = []
    ratios: list[float] = []
    for index, (one, target) in enumerate(zip(found.steps, targets, strict=True)):
        ratio = float(one.level.sigma / one.level.alpha) if float(one.level.alpha) > 0 else math.inf
        tolerance = _tolerance(subject, one.level, target, ratios, memory)
        parts.append(_taken_apart(index, one, target, image, tolerance, found.steps[index - (start + index) % order : index]))
        ratios.append(ratio)
    parts[-1] = _at_undeclared_end(subject, scheduler, parts[-1])
    return parts


def hides_noise(subject: Subject) -> bool:
    """Whether an adapted scheduler adds noise that torch does not draw (NumPy's, say), which cannot be seen or replaced.

    Two runs on the same draws of torch differ then, or a step leaves a remainder that no draw explains. Adapters alone are asked:
    schedulers of torch have laws for this.
    """
    if subject.hides_noise is None:
        subject.hides_noise = False
        if subject.is_adapted:
            sample = walking.normal(2, 4, 4, 4)
            try:
                one, other = (loops.states(subject, subject.some_count, sample, replace=torch.zeros_like)[-1] for _ in range(2))
                found = arrivals(subject, subject.some_count)
                drawn = any(part.step.draws for part in found)
                subject.hides_noise = not torch.equal(one, other) or (not drawn and any(part.rest > 10 * part.tolerance for part in found))
            except (Crash, NotApplicable):
                pass
    return subject.hides_noise


def restarts(subject: Subject, count: int) -> bool:
    """Whether a plan goes back up by design: each such step adds noise, and all steps end at the level of the next one."""
    try:
        timesteps = as_values(subject.seen_plan(count).timesteps).double()
        falls = timesteps.diff() * (1 if subject.rises else -1)
        found = arrivals(subject, count) if bool((falls < 0).any()) else []
    except (Crash, NotApplicable):
        return False
    back = [one for one in found[:-1] if float(one.target.sigma / one.target.alpha) > float(one.step.level.sigma / one.step.level.alpha)]
    return bool(back) and all(one.fresh > one.tolerance for one in back) and all(one.is_right for one in found)


def _kept_states(scheduler: Any, state: torch.Tensor) -> int:
    """How many tensors of the sample's shape a scheduler keeps from earlier steps, as multistep solvers do."""
    if isinstance(scheduler, Adapted):
        return _MEMORY_OF_SAMPLERS
    kept = [value.values() if isinstance(value, dict) else value for value in getattr(scheduler, "__dict__", {}).values()]
    flat = [item for value in kept for item in (value if isinstance(value, list | tuple | deque | ValuesView) else [value])]
    return sum(isinstance(one, torch.Tensor) and one.shape == state.shape for one in flat)


def _at_undeclared_end(subject: Subject, scheduler: Any, last: Arrival) -> Arrival:
    """The last arrival. Where no attribute declares an end, that is any level from the cleanest training timestep to the clean image."""
    cleanest = cleanest_level(subject, scheduler)
    if cleanest is None:
        return last
    inside = float(cleanest.alpha) - last.tolerance <= last.clean <= 1 + last.tolerance
    if not (inside and last.total <= float(cleanest.sigma) + last.tolerance):
        return last
    return last._replace(target=NoiseLevel(torch.tensor(last.clean).double(), torch.tensor(last.total).double()))


def cleanest_level(subject: Subject, scheduler: Any) -> NoiseLevel | None:
    """The level of the cleanest training timestep, where no attribute declares another end of a plan."""
    sigmas, alphas = getattr(scheduler, "sigmas", None), getattr(scheduler, "alphas_cumprod", None)
    has_last_sigma = sigmas is not None and len(sigmas) == len(scheduler.timesteps) + 1
    if has_last_sigma or getattr(scheduler, "final_alpha_cumprod", None) is not None or subject.kind != "vp":
        return None
    if subject.names_end and (reading := subject.reading_of(scheduler)) is not None:
        return reading.levels[-1]
    if alphas is None:
        return None
    product = torch.as_tensor(alphas[0]).to("cpu", torch.float64)
    return NoiseLevel(product.sqrt(), (1 - product).sqrt())


def image_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(SHAPE, generator=generator, dtype=torch.float64) - 0.5
    return image, torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def _taken_apart(
    index: int, step: loops.Step, target: NoiseLevel, image: torch.Tensor, tolerance: float, stages: Sequence[loops.Step]
) -> Arrival:
    earlier = [values for stage in stages for draw in stage.draws if (values := _standard(draw, image.shape)) is not None]
    earlier = earlier if len(earlier) <= 4 else []  # else a Brownian path, see below
    # A later stage may start again before the draws of the earlier ones.
    begin = stages[0] if earlier else step
    alpha, sigma = float(begin.level.alpha), float(begin.level.sigma)
    noise = (begin.before.double() - alpha * image) / sigma if sigma > 0 else torch.zeros_like(image)
    drawn = [_standard(draw, image.shape) for draw in step.draws]
    # A Brownian path takes dozens of draws in one step; with so many columns, regression fits any result.
    columns = [values for values in drawn if values is not None] if len(drawn) <= 4 else []
    if not all(draw.normal for draw in step.draws):
        columns.append(torch.ones_like(image))  # noise of another distribution may have a mean
    matrix = torch.stack([values.flatten() for values in (image, noise, *columns, *earlier)], dim=1)
    arrived = step.after.double().flatten()
    if not bool(torch.isfinite(arrived).all()) or not bool(torch.isfinite(matrix).all()):
        return Arrival(index, step, target, math.nan, math.nan, [], math.nan, tolerance, math.nan)
    used = matrix if sigma > 0 else matrix[:, [0, *range(2, matrix.shape[1])]]
    solution = torch.linalg.lstsq(used, arrived.unsqueeze(1), driver="gelsd").solution.flatten()
    rest = float((used @ solution - arrived).square().mean().sqrt())
    values = solution.tolist()
    kept = values[1] if sigma > 0 else 0.0
    spread = float((arrived - values[0] * matrix[:, 0]).square().mean().sqrt())
    drawn_weights = values[2 if sigma > 0 else 1 :]
    own, before = drawn_weights[: len(columns)], drawn_weights[len(columns) :]
    return Arrival(index, step, target, values[0], kept, own, rest, tolerance, spread, tuple(before))


def _standard(draw: Draw, shape: torch.Size) -> torch.Tensor | None:
    """A draw's values, standardised and in the sample's shape, or None if their shape does not fit."""
    values = draw.values
    if draw.operator.startswith(("rand", "uniform")) and not draw.normal:
        values = (values - 0.5) * math.sqrt(12)
    elif not draw.normal:
        values = (values - values.mean()) / values.std().clamp(min=1e-12)
    if values.numel() != shape.numel():
        try:
            return values.broadcast_to(shape)
        except RuntimeError:
            return None
    return values.reshape(shape)


def _tolerance(subject: Subject, level: NoiseLevel, target: NoiseLevel, earlier: Sequence[float], memory: int) -> float:
    """Tolerance of a step in float32: a relative error of 3e-4, and the rounding of a large state that is divided by a small σ.

    `earlier` are the σ/α of the steps before. A solver with a `memory` of some of them uses their predictions of the image, whose rounding
    is that of their own, larger σ/α.
    """
    if subject.has_readings and subject.kind == "flow" and subject.tells_whole_timesteps:
        # The loop steps by fractions, and noises at the whole timestep that it tells.
        return 1.1 / subject.num_train_timesteps + 3e-4
    alpha, sigma = float(level.alpha), float(level.sigma)
    ratio = sigma / alpha if alpha > 0 else 1.0
    rounding = ratio if math.isfinite(ratio) else 1.0
    if earlier and evaluations_per_step(subject.scheduler) > 1 and ratio > 0:
        # The second stage divides the rounding error of the first stage by its own σ.
        rounding += earlier[-1] ** 2 / ratio
    rounding += max((one for one in earlier[-memory:] if memory and math.isfinite(one)), default=0.0)
    if subject.kind == "vp" and sigma > 0:
        # Rounding of 1 − ᾱ for a float32 ᾱ.
        rounding += 0.5 / sigma**2
    return 3e-4 * max(float(target.alpha), float(target.sigma)) + 8 * _FLOAT * rounding * max(float(target.alpha), 1e-3)


def require_exact_kind(subject: Subject) -> None:
    if config_value(subject.scheduler, "algorithm_type") in ("sde-dpmsolver", "noise_prediction"):
        raise NotApplicable(f"{subject.name} reuses old noise in later steps, so its marginals are exact only with infinitely many steps.")


def posterior_deviation(level: NoiseLevel, target: NoiseLevel) -> float:
    """Standard deviation of q(x_t | x_s, x₀), which is the noise of ancestral sampling. Source: arXiv:2006.11239, equation 7."""
    kept = (level.alpha / target.alpha).square() * target.sigma.square() / level.sigma.square()
    return float((target.sigma.square() * (1 - kept)).clamp(min=0).sqrt())


def forward_deviation(level: NoiseLevel, target: NoiseLevel) -> float:
    """√β of the step, the larger of the two choices in arXiv:2006.11239, section 3.2 (variance preserving)."""
    return float((1 - (level.alpha / target.alpha).square()).clamp(min=0).sqrt())


def has_unseen_memory(subject: Subject, one: Arrival) -> bool:
    """Whether a stochastic multistep solver adds noise of earlier steps again, as SDE solvers that extrapolate ε do."""
    memory = int(config_value(subject.scheduler, "solver_order") or config_value(subject.scheduler, "predictor_order") or 1) > 1
    return memory and one.rest > one.tolerance and any(abs(weight) > one.tolerance for weight in one.added)
