"""Data that are one image: the law under which every sound step is exact, and what a step did, found by regression.

With x₀ = c the ideal denoiser says c whatever it sees, so that a state α·c + σ·ε must arrive at α'·c + σ'·ε'. One step of any
solver is then a·c + b·ε + Σ d·z with the noise z that it drew; least squares over the elements give a, b and d without an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from pytest_diffusion.conformance import loops, plots
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.randomness import Draw
from pytest_diffusion.conformance.subject import Crash, Subject
from pytest_diffusion.models.levels import NoiseLevel
from pytest_diffusion.models.schedulers import config_value, evaluations_per_step, has_own_sigma_range
from pytest_diffusion.verdicts.drawing import Series
from pytest_diffusion.verdicts.errors import NotApplicable

SHAPE = (2, 4, 16, 16)
_FLOAT = 2.0**-23


class Arrival(NamedTuple):
    """What one step made of c and ε: `clean`·c + `kept`·ε + Σ `added`·z + a rest of root mean square `rest`; all in float64."""

    number: int
    step: loops.Step
    target: NoiseLevel
    clean: float
    kept: float
    added: list[float]
    rest: float
    tolerance: float
    spread: float
    """Root mean square of all that is not the image."""

    @property
    def fresh(self) -> float:
        """Standard deviation of the noise that the step put in, whether or not its draws were seen."""
        return math.hypot(*self.added, 0.0 if self.rest <= self.tolerance else self.rest)

    @property
    def total(self) -> float:
        """Standard deviation of the noise at arrival; where its parts are not known, that of the noise which came."""
        return math.hypot(self.kept, self.fresh) if self.rest <= self.tolerance else self.spread


def arrivals(subject: Subject, count: int, *, start: int = 0, scheduler: Any = None, **extras: Any) -> list[Arrival]:
    """Every step of a loop over a point mass, taken apart; from step `start` on, as image-to-image does."""
    if subject.is_inverse:
        raise NotApplicable(f"{subject.name} goes from clean to noisy, and its samples lag behind the timestep.")
    image, noise = _image_and_noise()
    known = {"generator": torch.Generator().manual_seed(1), "original_image": image.float(), "mask": torch.ones(SHAPE)}
    found = loops.run(
        subject,
        count,
        lambda sample, level: image,
        lambda level: (level.alpha * image + level.sigma * noise).float(),
        scheduler=scheduler,
        first=start,
        **{**known, **extras},
    )
    targets = found.levels[1:]
    parts = []
    before = 0.0
    for index, (one, target) in enumerate(zip(found.steps, targets, strict=True)):
        ratio = float(one.level.sigma / one.level.alpha) if float(one.level.alpha) > 0 else math.inf
        parts.append(_taken_apart(index, one, target, image, _tolerance(subject, one.level, target, before)))
        before = ratio
    return parts


def _image_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(SHAPE, generator=generator, dtype=torch.float64) - 0.5
    return image, torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def _taken_apart(index: int, step: loops.Step, target: NoiseLevel, image: torch.Tensor, tolerance: float) -> Arrival:
    alpha, sigma = float(step.level.alpha), float(step.level.sigma)
    noise = (step.before.double() - alpha * image) / sigma if sigma > 0 else torch.zeros_like(image)
    drawn = [_standard(draw, image.shape) for draw in step.draws]
    # A path of Brownian motion is refined by dozens of draws; they would explain anything.
    columns = [values for values in drawn if values is not None] if len(drawn) <= 4 else []
    if not all(draw.normal for draw in step.draws):
        columns.append(torch.ones_like(image))  # noise of another law may have a mean
    matrix = torch.stack([values.flatten() for values in (image, noise, *columns)], dim=1)
    arrived = step.after.double().flatten()
    if not bool(torch.isfinite(arrived).all()) or not bool(torch.isfinite(matrix).all()):
        return Arrival(index, step, target, math.nan, math.nan, [], math.nan, tolerance, math.nan)
    used = matrix if sigma > 0 else matrix[:, [0, *range(2, matrix.shape[1])]]
    solution = torch.linalg.lstsq(used, arrived.unsqueeze(1), driver="gelsd").solution.flatten()
    rest = float((used @ solution - arrived).square().mean().sqrt())
    values = solution.tolist()
    kept = values[1] if sigma > 0 else 0.0
    spread = float((arrived - values[0] * matrix[:, 0]).square().mean().sqrt())
    return Arrival(index, step, target, values[0], kept, values[2 if sigma > 0 else 1 :], rest, tolerance, spread)


def _standard(draw: Draw, shape: torch.Size) -> torch.Tensor | None:
    """A draw's values over the whole sample, or None where they cannot belong to it."""
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


def _tolerance(subject: Subject, level: NoiseLevel, target: NoiseLevel, before: float) -> float:
    """What float32 leaves of a step: a part in 3,000, and the rounding of a large state that is divided by a small σ."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    ratio = sigma / alpha if alpha > 0 else 1.0
    rounding = ratio if math.isfinite(ratio) else 1.0
    if evaluations_per_step(subject.scheduler) > 1 and ratio > 0:
        # The second stage divides what is left of the first one's rounding by its own σ.
        rounding += before**2 / ratio
    if subject.kind == "vp" and sigma > 0:
        # 1 − ᾱ of a float32 ᾱ.
        rounding += 0.5 / sigma**2
    return 3e-4 * max(float(target.alpha), float(target.sigma)) + 8 * _FLOAT * rounding * max(float(target.alpha), 1e-3)


def _require_exact_kind(subject: Subject) -> None:
    if config_value(subject.scheduler, "algorithm_type") in ("sde-dpmsolver", "noise_prediction"):
        raise NotApplicable(
            f"{subject.name} extrapolates the noise that it renews: its marginals are exact only in the limit of many steps."
        )


def posterior_deviation(level: NoiseLevel, target: NoiseLevel) -> float:
    """Standard deviation of q(x_t | x_s, x₀): what ancestral sampling adds. Source: arXiv:2006.11239, equation 7."""
    kept = (level.alpha / target.alpha).square() * target.sigma.square() / level.sigma.square()
    return float((target.sigma.square() * (1 - kept)).clamp(min=0).sqrt())


def forward_deviation(level: NoiseLevel, target: NoiseLevel) -> float:
    """√β of the step itself, the larger choice of arXiv:2006.11239, section 3.2 (variance preserving)."""
    return float((1 - (level.alpha / target.alpha).square()).clamp(min=0).sqrt())


@law(
    "each step arrives at the level where the next one starts",
    source="DDIM, arXiv:2010.02502, equation 12, for x₀ that is known",
    counts=(2, 3, 5, 13, 30),
    plot=plots.plan,
)
def point_mass_preserved(subject: Subject, counts: Sequence[int]) -> Series:
    """If the data are one image c, a state α·c + σ·noise must become α'·c + σ'·noise of the next step's level.

    Every solver that keeps the marginals does so exactly, whatever its order and however many steps it takes.
    """
    found: list[Arrival] = []
    for count in subject.counts(*counts):
        if "mask" in subject.step_parameters:
            for one in arrivals(subject, count, mask=torch.zeros(SHAPE))[:-1]:
                require_arrival(subject, one, count, where=" where nothing is known")
        found = arrivals(subject, count)
        for one in found[:-1]:
            require_arrival(subject, one, count)
    return _plan(found)


def _plan(found: list[Arrival]) -> Series:
    """Timesteps and log-SNR of a loop, for a plot of its schedule."""
    log_snr = [2 * math.log(max(float(one.step.level.alpha), 1e-30) / max(float(one.step.level.sigma), 1e-30)) for one in found]
    return {"timesteps": [one.step.timestep for one in found], "log_snr": log_snr}


def _is_exact_in_the_limit(subject: Subject) -> bool:
    """Whether the ends of a Runge-Kutta scheme's steps approach their targets with its order, of at least 3.

    Solvers in another variable than σ or log-SNR are not exact for one image. At lower orders a wrong target would look the same.
    """
    order = evaluations_per_step(subject.scheduler)
    if order < 3:
        return False
    gaps = []
    for count in (20, 40):
        # How much larger than they should be deviations from the image have become, at the ends of whole steps.
        growth = torch.tensor([one.kept / float(one.target.sigma) for one in arrivals(subject, count)[:-1]]).cumprod(0)
        gaps.append(float((growth[order - 1 :: order] - 1).abs().max()))
    return gaps[1] < gaps[0] / 2 ** (order - 0.5)


def require_arrival(subject: Subject, one: Arrival, count: int, *, where: str = "") -> None:
    """Raise Broken where a step does not arrive at its target's level, NotApplicable where no solver of its kind would exactly."""
    _require_exact_kind(subject)
    if not one.step.goes_on:
        return
    target_sigma, seen_sigma, what = float(one.target.sigma), one.total, "noise"
    if str(config_value(subject.scheduler, "variance_type")).startswith(("fixed_large", "learned")):
        # The variance is a choice there, which `noise_amount` looks at; the rest of the noise is not.
        small = posterior_deviation(one.step.level, one.target)
        target_sigma, seen_sigma, what = math.sqrt(max(target_sigma**2 - small**2, 0.0)), one.kept, "old noise"
    if _has_unseen_memory(subject, one):
        raise NotApplicable(f"{subject.name} carries the noise of earlier steps on: its marginals are exact only in the limit.")
    of_image, of_noise = _chance(one) if one.rest > one.tolerance else (0.0, 0.0)
    right_image = abs(one.clean - float(one.target.alpha)) <= one.tolerance + of_image
    if not (right_image and (abs(seen_sigma - target_sigma) <= one.tolerance + of_noise or _is_larger_choice(subject, one))):
        if _is_exact_in_the_limit(subject):
            raise NotApplicable(f"{subject.name} is exact for one image in the limit only: see `convergence_order`.")
        seen = f"step {one.number} (timestep {one.step.timestep:g}){where} gives {one.clean:.5g}·image and {seen_sigma:.5g}·{what}"
        raise Broken(f"{float(one.target.alpha):.5g}·image and {target_sigma:.5g}·{what}", seen, count=count)


def _is_larger_choice(subject: Subject, one: Arrival) -> bool:
    """Whether the noise is that of DDPM's other choice, β: right for data of unit variance, and too much for one image."""
    small, large = (deviation(one.step.level, one.target) for deviation in (posterior_deviation, forward_deviation))
    kept = math.sqrt(max(float(one.target.sigma) ** 2 - small**2, 0.0))
    return subject.kind == "vp" and abs(one.kept - kept) <= one.tolerance and abs(one.fresh - large) <= one.tolerance


@law(
    "the last step lands where the schedule says, and adds no noise",
    source="DDPM, arXiv:2006.11239, algorithm 2, line 3",
    counts=(1, 2, 3, 10),
    rests_on=("runs", "sigmas_fall", "point_mass_preserved"),
)
def terminal_step(subject: Subject, counts: Sequence[int]) -> None:
    """The last step gives the clean prediction, or stops at the declared last level.

    That level is no noisier than the cleanest training timestep; noise that is added there stays in the image.
    """
    _require_exact_kind(subject)
    for count in subject.counts(*counts):
        last = arrivals(subject, count)[-1]
        end = last.target
        if last.fresh > float(end.sigma) + 3 * last.tolerance:
            raise Broken("no new noise in the last step", f"{last.fresh:.4g}·noise is added to the finished sample", count=count)
        if not (abs(last.clean - float(end.alpha)) <= last.tolerance and abs(last.total - float(end.sigma)) <= last.tolerance):
            seen = f"{last.clean:.5g}·image and {last.total:.5g}·noise"
            raise Broken(f"{float(end.alpha):.5g}·image and {float(end.sigma):.5g}·noise after the last step", seen, count=count)
        named = config_value(subject.scheduler, "final_sigmas_type")
        if named in ("zero", "sigma_min") and (float(end.sigma) == 0) != (named == "zero"):
            raise Broken(f"an end as final_sigmas_type={named!r} says", f"it ends at σ = {float(end.sigma):.4g}", count=count)
        cleanest = _cleanest(subject)
        if float(end.sigma / end.alpha) > 1.01 * cleanest:
            seen = f"it ends at σ/α = {float(end.sigma / end.alpha):.4g}"
            raise Broken(f"an end no noisier than the cleanest training timestep (σ/α = {cleanest:.4g})", seen, count=count)


@law(
    "a step says which clean image it was told",
    source="DDIM, arXiv:2010.02502, equation 9",
    counts=(3, 10),
    rests_on=("point_mass_preserved",),
)
def predicted_original(subject: Subject, counts: Sequence[int]) -> None:
    """`pred_original_sample` is the denoiser's clean image at every timestep: previews and guidance by a loss are made of it."""
    image, _ = _image_and_noise()
    for count in subject.counts(*counts):
        told = [one for one in arrivals(subject, count) if one.step.clean is not None]
        if not told:
            raise NotApplicable(f"{subject.name}.step gives no pred_original_sample.")
        for one in told:
            assert one.step.clean is not None
            gap = float((one.step.clean.double() - image).square().mean().sqrt())
            # What is left of float32 where a step divides by α.
            if not gap <= 3 * one.tolerance / max(float(one.target.alpha), 1e-6):
                seen = f"step {one.number} (timestep {one.step.timestep:g}) gives one that is {gap:.4g} away"
                raise Broken("a pred_original_sample that is the denoiser's image", seen, count=count)


@law(
    "the noise of a step is of the amount that is claimed",
    source="arXiv:2010.02502, equation 16; arXiv:2006.11239, equation 7; arXiv:2102.09672, equation 15",
    counts=(3, 10, 25),
    rests_on=("point_mass_preserved",),
)
def noise_amount(subject: Subject, counts: Sequence[int]) -> None:
    """New noise is η times the posterior's standard deviation, so that η = 1 is DDPM.

    `variance_type` and SDE solvers name theirs in the same way.
    """
    claims = _claims(subject)
    if not claims:
        raise NotApplicable(f"{subject.name} claims no amount of noise: no eta, no variance_type, no SDE solver.")
    for count in subject.counts(*counts):
        for claim, extras, wanted in claims:
            loops.require_finite_at_any_rounding(subject, count, **extras)
            for one in arrivals(subject, count, **extras)[:-1]:
                expected = wanted(one.step.level, one.target)
                if not abs(one.fresh - expected) <= 2 * one.tolerance + 1e-3 * expected:
                    seen = f"step {one.number} (timestep {one.step.timestep:g}) adds {one.fresh:.5g}·noise"
                    raise Broken(f"{expected:.5g}·noise with {claim}", seen, count=count)


Claim = tuple[str, dict[str, Any], Callable[[NoiseLevel, NoiseLevel], float]]


def _share(eta: float) -> Callable[[NoiseLevel, NoiseLevel], float]:
    return lambda level, target: eta * posterior_deviation(level, target)


def _half_way(level: NoiseLevel, target: NoiseLevel) -> float:
    """Between the two in the logarithm (arXiv:2102.09672, equation 15)."""
    return math.sqrt(posterior_deviation(level, target) * forward_deviation(level, target))


def _claims(subject: Subject) -> list[Claim]:
    choice = config_value(subject.scheduler, "variance_type")
    solver = str(config_value(subject.scheduler, "algorithm_type") or "")
    if "eta" in subject.step_parameters and subject.kind == "vp":
        if "original_inference_steps" in subject.config:
            return []  # the eta of consistency models is another one
        return [(f"eta={eta:g}", {"eta": eta}, _share(eta)) for eta in (0.0, 0.5, 1.0)]
    if choice in ("fixed_small", "fixed_small_log"):
        return [(f"variance_type={choice!r}", {}, posterior_deviation)]
    if choice in ("fixed_large", "fixed_large_log"):
        return [(f"variance_type={choice!r}", {}, forward_deviation)]
    if choice == "learned_range":
        return [
            ("variance_type='learned_range' and the model's variance at −1, the smallest", {"variance": -1.0}, posterior_deviation),
            ("variance_type='learned_range' and the model's variance at 1, the largest", {"variance": 1.0}, forward_deviation),
            ("variance_type='learned_range' and the model's variance half-way, in its logarithm", {"variance": 0.0}, _half_way),
        ]
    if choice == "learned":
        return [("variance_type='learned' and a predicted variance of 0.01", {"variance": 0.01}, lambda level, to: 0.1)]
    # A single-step solver's second stage goes back to where its first one started.
    if solver == "sde-dpmsolver++" and not hasattr(subject.scheduler, "order_list"):
        return [(f"algorithm_type={solver!r}", {}, posterior_deviation)]
    return []


@law(
    "drawn noise is standard normal and independent for every element",
    source="arXiv:2006.11239, algorithm 2, line 3",
    counts=(4,),
)
def noise_is_normal(subject: Subject, counts: Sequence[int]) -> None:
    """What a step adds is white Gaussian noise of the sample's own shape, drawn from torch.

    Every image of a batch has its own.
    """
    for count in subject.counts(*counts):
        try:
            found = arrivals(subject, count, **subject.noisy)
            loops.require_finite_at_any_rounding(subject, count, **subject.noisy)
        except Crash as crash:
            if isinstance(crash.error, FloatingPointError):
                raise NotApplicable(f"{subject.name} gives samples that are not numbers: see `noise_amount` and `dtype_kept`.") from crash
            raise
        follows_a_path = max(len(one.step.draws) for one in found) > 4
        for one in found:
            for weight, draw in zip(one.added, one.step.draws, strict=False):
                if abs(weight) > 10 * one.tolerance:
                    _require_white(draw, one, count)
            if one.rest > 10 * one.tolerance and not follows_a_path and not _has_unseen_memory(subject, one):
                seen = f"step {one.number} changes its samples by {one.rest:.4g} beyond image, noise and what torch drew"
                raise Broken("a step that is made of image, noise and what it draws from torch", seen, count=count)


def _require_white(draw: Draw, one: Arrival, count: int) -> None:
    if not draw.normal and draw.operator != "normal":
        raise Broken("noise from a normal distribution", f"step {one.number} draws it by torch's {draw.operator}", count=count)
    if draw.values.numel() < math.prod(SHAPE) and draw.values.shape[:1] != (1,):
        raise Broken(f"noise of the sample's shape {SHAPE}", f"step {one.number} draws {tuple(draw.values.shape)}", count=count)
    if draw.values.numel() < math.prod(SHAPE):
        seen = f"step {one.number} draws {tuple(draw.values.shape)} and adds it to all"
        raise Broken(f"noise of its own for every image of a batch of {SHAPE[0]}", seen, count=count)


def _has_unseen_memory(subject: Subject, one: Arrival) -> bool:
    """Whether a stochastic solver with memory mixes earlier noise in, as SDE solvers that extrapolate ε do."""
    memory = int(config_value(subject.scheduler, "solver_order") or config_value(subject.scheduler, "predictor_order") or 1) > 1
    return memory and one.rest > one.tolerance and any(abs(weight) > one.tolerance for weight in one.added)


def _chance(one: Arrival) -> tuple[float, float]:
    """Five standard errors of the image's weight and of the noise's deviation, where noise was not seen as it was drawn."""
    error = 5 * one.spread / math.sqrt(math.prod(SHAPE))
    # The image is uniform on an interval of length 1; a deviation has an error of 1/√2 of the mean's.
    return error * math.sqrt(12), error / math.sqrt(2)


def _cleanest(subject: Subject) -> float:
    """σ/α of the cleanest training timestep, or of `sigma_min` where that is larger."""
    alphas = getattr(subject.scheduler, "alphas_cumprod", None)
    own = config_value(subject.scheduler, "sigma_min") if has_own_sigma_range(subject.scheduler) else None
    trained = 0.0 if alphas is None else float(((1 - torch.as_tensor(alphas[0]).double()) / torch.as_tensor(alphas[0]).double()).sqrt())
    return max(trained, float(own or 0.0), 1e-6 if alphas is not None or own is not None else 1 / subject.num_train_timesteps)
