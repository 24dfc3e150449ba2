"""Laws for data that are a single image, for which every correct step is exact (see `arrivals`)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch

from pytest_diffusion.conformance import plots
from pytest_diffusion.conformance.arrivals import (
    SHAPE,
    Arrival,
    arrivals,
    forward_deviation,
    has_unseen_memory,
    image_and_noise,
    posterior_deviation,
    require_exact_kind,
)
from pytest_diffusion.conformance.conventions import NAMES
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import config_value, evaluations_per_step, has_own_sigma_range
from pytest_diffusion.verdicts.drawing import Series
from pytest_diffusion.verdicts.errors import NotApplicable


@law(
    "each step arrives at the level where the next one starts",
    source="DDIM, arXiv:2010.02502, equation 12, for x₀ that is known",
    counts=(2, 3, 5, 13, 30),
    least=2,
    plot=plots.plan,
)
def point_mass_preserved(subject: Subject, counts: Sequence[int]) -> Series:
    """If the data are a single image c, a state α·c + σ·noise must become α'·c + σ'·noise with the next step's noise level.

    Every solver that preserves the marginals does this exactly, for any order and any number of steps.
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
    """Whether the ends of the steps of a Runge-Kutta solver converge to their targets with its order, of at least 3.

    Solvers in another variable than σ or log-SNR are not exact for a single image. At lower orders, the error of one step must fall as
    that of a first-order step does, with the square of its length: a wrong target or amount of noise falls with the length at most.
    diffusers' own steps of low order are all exact.
    """
    order = evaluations_per_step(subject.scheduler)
    if order < 3:
        return order == 1 and not subject.is_of_diffusers and _error_of_a_step(subject, 40) > 3 * _error_of_a_step(subject, 80)
    gaps = []
    for count in (20, 40):
        # Ratio of the actual to the expected deviation from the image, at the ends of whole steps.
        growth = torch.tensor([one.kept / float(one.target.sigma) for one in arrivals(subject, count)[:-1]]).cumprod(0)
        gaps.append(float((growth[order - 1 :: order] - 1).abs().max()))
    return gaps[1] < gaps[0] / 2 ** (order - 0.5)


def _error_of_a_step(subject: Subject, count: int) -> float:
    """Median deviation of a step in the middle half of a plan, as a share of the level where it should end."""
    found = arrivals(subject, count)
    middle = found[len(found) // 4 : len(found) - len(found) // 4]
    return statistics.median(
        max(abs(one.clean - float(one.target.alpha)), abs(one.total - float(one.target.sigma))) / float(one.target.sigma) for one in middle
    )


def require_arrival(subject: Subject, one: Arrival, count: int, *, where: str = "") -> None:
    """Raise Broken if a step does not reach its target's noise level, NotApplicable if no solver of its kind is exact."""
    require_exact_kind(subject)
    if not one.step.goes_on:
        return
    target_sigma, seen_sigma, what = float(one.target.sigma), one.total, "noise"
    if str(config_value(subject.scheduler, "variance_type")).startswith(("fixed_large", "learned")):
        # `noise_amount` checks the variance of the new noise; here only the old noise is checked.
        small = posterior_deviation(one.step.level, one.target)
        target_sigma, seen_sigma, what = math.sqrt(max(target_sigma**2 - small**2, 0.0)), one.kept, "old noise"
    if has_unseen_memory(subject, one):
        raise NotApplicable(
            f"{subject.name} mixes noise of earlier steps into later ones, so its marginals are exact only with infinitely many steps."
        )
    of_image, of_noise = _chance(one) if one.rest > one.tolerance else (0.0, 0.0)
    right_image = abs(one.clean - float(one.target.alpha)) <= one.tolerance + of_image
    if not (right_image and (abs(seen_sigma - target_sigma) <= one.tolerance + of_noise or _is_larger_choice(subject, one))):
        if _is_exact_in_the_limit(subject):
            raise NotApplicable(f"{subject.name} is exact for a single image only with infinitely many steps: see `convergence_order`.")
        seen = f"step {one.number} (timestep {one.step.timestep:g}){where} gives {one.clean:.5g}·image and {seen_sigma:.5g}·{what}"
        if subject.told_prediction_type is not None:
            off = max(abs(one.clean - float(one.target.alpha)), abs(seen_sigma - target_sigma))
            seen += f", off by {off:.3g}, if the model gives {NAMES[subject.told_prediction_type]}, which is the nearest of all conventions"
        raise Broken(f"{float(one.target.alpha):.5g}·image and {target_sigma:.5g}·{what}", seen, count=count)


def _is_larger_choice(subject: Subject, one: Arrival) -> bool:
    """Whether the noise has DDPM's larger variance, β, which is exact for data of unit variance and too large for a single image."""
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
    """The last step must give the clean prediction, or end at the declared last noise level.

    That level must be no noisier than the cleanest training timestep. Noise added in the last step stays in the image.
    """
    require_exact_kind(subject)
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
            raise Broken(f"the end that final_sigmas_type={named!r} declares", f"it ends at σ = {float(end.sigma):.4g}", count=count)
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
    """`pred_original_sample` must be the denoiser's clean image at every timestep, because previews and loss guidance use it."""
    image, _ = image_and_noise()
    for count in subject.counts(*counts):
        told = [one for one in arrivals(subject, count) if one.step.clean is not None]
        if not told:
            raise NotApplicable(f"{subject.name}.step gives no pred_original_sample.")
        for one in told:
            assert one.step.clean is not None
            gap = float((one.step.clean.double() - image).square().mean().sqrt())
            # Tolerance in float32 if a step divides by α.
            if not gap <= 3 * one.tolerance / max(float(one.target.alpha), 1e-6):
                seen = f"step {one.number} (timestep {one.step.timestep:g}) gives a pred_original_sample with an error of {gap:.4g}"
                raise Broken("a pred_original_sample that is the denoiser's image", seen, count=count)


def _chance(one: Arrival) -> tuple[float, float]:
    """Five standard errors of the image's weight and of the noise's deviation, for noise that was not recorded as a draw."""
    error = 5 * one.spread / math.sqrt(math.prod(SHAPE))
    # The image is uniform on an interval of length 1; a deviation has an error of 1/√2 of the mean's.
    return error * math.sqrt(12), error / math.sqrt(2)


def _cleanest(subject: Subject) -> float:
    """σ/α of the cleanest training timestep, or of `sigma_min` if that is larger."""
    alphas = getattr(subject.scheduler, "alphas_cumprod", None)
    own = config_value(subject.scheduler, "sigma_min") if has_own_sigma_range(subject.scheduler) else None
    trained = 0.0 if alphas is None else float(((1 - torch.as_tensor(alphas[0]).double()) / torch.as_tensor(alphas[0]).double()).sqrt())
    return max(trained, float(own or 0.0), 1e-6 if alphas is not None or own is not None else 1 / subject.num_train_timesteps)
